"""Predictions whose masks are good and bad in every degree: overlaps from 0 to 1, other ones at
every output."""

from __future__ import annotations

from dataclasses import replace

import torch

from alignmask.data import Batch
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.heads import Prediction
from tests import tiny
from tests.loss.pointrend import samples_at

SIZE = (32, 64)
CLASSES = 4


def scene(
    counts: tuple[int, ...] = (3, 0, 2), outputs: int = 2, queries: int = 6, slots: int = 4, softmax: bool = False,
    seed: int = 0,
) -> tuple[Prediction, Batch]:  # fmt: skip
    """Every image's pixel embedding has a channel per instance, inside of which it is positive, and
    two of noise.

    Object queries and aligned slots go round the image's instances; the last aligned slot is
    padding. Every output strays from the instances by another amount, and class logits lean towards
    the right class. slots = 0: no aligned queries.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = tiny.batch(counts, size=SIZE, seed=seed)
    most, rows = max(*counts, 1), queries + slots
    pixels_BEHW = torch.randn(
        len(counts), most + 2, SIZE[0] // 4, SIZE[1] // 4, generator=generator
    )
    embedding_LBRE = torch.randn(outputs, len(counts), rows, most + 2, generator=generator)
    logits_LBRC = torch.randn(outputs, len(counts), rows, CLASSES + softmax, generator=generator)
    instance_BA = torch.full((len(counts), slots), -1)
    first = 0
    for b, count in enumerate(counts):
        inside = (
            batch.masks_GHW[first : first + count]
            .float()
            .unflatten(1, (-1, 4))
            .unflatten(3, (-1, 4))
            .mean((2, 4))
        )
        pixels_BEHW[b, :count] = 0.7 * pixels_BEHW[b, :count] + 4 * inside - 2
        for r in range(rows if count else 0):
            m = r % count
            embedding_LBRE[:, b, r, :most] *= 0.3
            embedding_LBRE[:, b, r, m] += 3 * torch.rand(outputs, generator=generator)
            logits_LBRC[:, b, r, batch.labels_G[first + m]] += 1
            if queries <= r < rows - 1:
                instance_BA[b, r - queries] = first + m
        first += count
    aligned = AlignedQueries(
        torch.zeros(len(counts), slots, 1), instance_BA, instance_BA.clamp(max=0)
    )
    return Prediction(
        logits_LBRC, embedding_LBRE, pixels_BEHW, queries, aligned if slots else None
    ), batch


def with_gradients(prediction: Prediction) -> tuple[Prediction, list[torch.Tensor]]:
    """A copy whose three tensors are leaves, and these."""
    names = ("class_logits_LBRC", "mask_embedding_LBRE", "pixel_embedding_BEHW")
    leaves = [getattr(prediction, name).clone().requires_grad_() for name in names]
    return replace(prediction, **dict(zip(names, leaves, strict=True))), leaves


def samples_at_row_points(
    logits_NHW: torch.Tensor,
    masks_GHW: torch.Tensor,
    index_N: torch.Tensor,
    points: int,
    *_: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples at `row_points`, in place of `alignmask.loss.points.uncertain_samples`."""
    points_NK2 = torch.empty(len(logits_NHW), points, 2)
    for row, logits_HW in enumerate(logits_NHW):
        points_NK2[row] = row_points(logits_HW, points)
    return samples_at(points_NK2, logits_NHW, masks_GHW, index_N)


@torch.no_grad()
def row_points(logits_HW: torch.Tensor, points: int) -> torch.Tensor:
    """Points [points, 2] that depend on nothing but a row's mask, in place of random ones."""
    fixed = torch.rand(points, 2, generator=torch.Generator().manual_seed(points))
    return 0.9 * fixed + 0.1 * logits_HW.mean().sigmoid().float()
