"""Matching against an independent implementation's costs and against brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss.matcher import cost, match
from alignmask.model.heads import Prediction
from tests import tiny

CONFIG = LossConfig(points=50)


def prediction_for(
    batch: Batch, classes: int = 4, queries: int = 6, outputs: int = 2, seed: int = 0
) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    images = batch.batch_size
    return Prediction(
        torch.randn(outputs, images, queries, classes, generator=generator),
        torch.randn(outputs, images, queries, 8, generator=generator),
        torch.randn(images, 8, 16, 24, generator=generator),
        queries,
    )


def test_costs_are_mask2formers() -> None:
    from transformers.models.mask2former.modeling_mask2former import (
        pair_wise_dice_loss,
        pair_wise_sigmoid_cross_entropy_loss,
    )

    batch = tiny.batch((3, 0, 2))
    prediction = prediction_for(batch, classes=5)
    points = torch.rand(3, 50, 2)
    found = cost(prediction, batch, CONFIG, "softmax", points)
    first = 0
    for b, count in enumerate(batch.counts):
        grid = 2 * points[b][None, :, None] - 1
        masks = batch.masks_GHW[first : first + count, None].float()
        target = F.grid_sample(masks, grid.expand(count, -1, -1, -1), align_corners=False)[
            :, 0, :, 0
        ]
        for output in range(2):
            full = prediction.mask_logits(output)[b]
            logits = F.grid_sample(full[:, None], grid.expand(6, -1, -1, -1), align_corners=False)[
                :, 0, :, 0
            ]
            if count:
                classes = prediction.class_logits_LBRC[output, b].softmax(-1)
                expected = (
                    2 * -classes[:, batch.labels_G[first : first + count]]
                    + 5 * pair_wise_sigmoid_cross_entropy_loss(logits, target)
                    + 5 * pair_wise_dice_loss(logits, target)
                )
                torch.testing.assert_close(
                    found[output, first : first + count], expected.T, rtol=1e-4, atol=1e-4
                )
        first += count


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_the_matching_is_the_cheapest_of_all(classification: str) -> None:
    batch = tiny.batch((3, 1))
    prediction = prediction_for(batch, classes=5, queries=5)
    points = torch.rand(2, 50, 2)
    config = replace(CONFIG, class_cost="focal" if classification == "focal" else "probability")
    costs = cost(prediction, batch, config, classification, points)
    found = match(prediction, batch, config, classification, points)
    first = 0
    for count in batch.counts:
        for output in range(2):
            best = min(
                itertools.permutations(range(5), count),
                key=lambda queries: sum(
                    costs[output, first + m, q].item() for m, q in enumerate(queries)
                ),
            )
            assert tuple(found[output, first : first + count].tolist()) == best
        first += count


def test_more_instances_than_queries() -> None:
    batch = tiny.batch((5,))
    found = match(prediction_for(batch, queries=3), batch, CONFIG, "quality_focal")
    for output in found:
        assert sorted(output[output >= 0].tolist()) == [0, 1, 2]
        assert (output == -1).sum() == 2


def test_no_instances() -> None:
    batch = tiny.batch((0, 0))
    assert match(prediction_for(batch), batch, CONFIG, "quality_focal").shape == (2, 0)


def test_aligned_queries_are_never_matched() -> None:
    batch = tiny.batch((3,))
    prediction = replace(prediction_for(batch, queries=6), queries=4)  # rows 4 and 5 are aligned
    prediction.mask_embedding_LBRE[:, :, :4] = 0
    assert match(prediction, batch, CONFIG, "quality_focal").max() < 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_names_the_image(value: float) -> None:
    batch = tiny.batch((2, 2))
    prediction = prediction_for(batch)
    prediction.mask_embedding_LBRE[1, 1, 3] = value
    with pytest.raises(FloatingPointError, match=r"image 101 \(1.png\).*output 1"):
        match(prediction, batch, CONFIG, "quality_focal")


def test_the_iou_cost_prefers_queries_with_better_masks() -> None:
    batch = tiny.batch((2, 0, 1))
    prediction = replace(prediction_for(batch, queries=6), queries=4)  # rows 4 and 5 are aligned
    points = torch.rand(3, 50, 2)
    iou = torch.rand(2, 3, 6)
    plain = cost(prediction, batch, CONFIG, "quality_focal", points)
    assert torch.equal(plain, cost(prediction, batch, CONFIG, "quality_focal", points, iou))
    found = plain - cost(
        prediction, batch, replace(CONFIG, iou_cost=3.0), "quality_focal", points, iou
    )
    torch.testing.assert_close(found, 3 * iou[:, :, :4], rtol=0, atol=1e-5)

    iou = torch.zeros(2, 3, 6)
    iou[:, 0, 3] = iou[:, 1, 2] = iou[:, 2, 0] = 1
    matched = match(prediction, batch, replace(CONFIG, iou_cost=1e3), "quality_focal", points, iou)
    assert matched.tolist() == [[3, 2, 0]] * 2
