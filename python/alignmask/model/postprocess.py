"""Prediction -> instances at the images' original sizes.

B images, Q queries, C classes, N instances of one image, E channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.data.batch import Batch
from alignmask.model.config import ModelConfig
from alignmask.model.heads import Prediction

# Masks are upsampled so many at a time: at 1024 x 1024 a hundred of them take 400 MB, twice.
CHUNK = 16


@dataclass
class Instances:
    """The instances found in one image, best first."""

    scores_N: Tensor
    """float32 in [0, 1]: what predictions are ranked by."""
    labels_N: Tensor
    """int64, contiguous class indices."""
    masks_NHW: Tensor
    """bool, at the image's original size."""
    boxes_N4: Tensor
    """float32: x1, y1, x2, y2 in pixels, around the mask."""
    class_scores_N: Tensor
    mask_scores_N: Tensor
    """The class score, and the mean probability of the mask's pixels: either way of scoring can be had from these."""

    def __len__(self) -> int:
        return self.scores_N.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Instances:
        return Instances(*(getattr(self, f.name)[index] for f in fields(self)))

    def cpu(self) -> Instances:
        return Instances(*(getattr(self, f.name).cpu() for f in fields(self)))

    @property
    def scores(self) -> Tensor:
        return self.scores_N

    @property
    def labels(self) -> Tensor:
        return self.labels_N

    @property
    def masks(self) -> Tensor:
        return self.masks_NHW

    @property
    def boxes(self) -> Tensor:
        return self.boxes_N4


def class_scores(logits: Tensor, config: ModelConfig) -> Tensor:
    """Class logits -> scores of the C classes (without "no object")."""
    return logits.softmax(-1)[..., :-1] if config.classification == "softmax" else logits.sigmoid()


def postprocess(prediction: Prediction, batch: Batch, config: ModelConfig) -> list[Instances]:
    """The best (query, class) pairs of every image. Only their masks are made; a pair with an empty mask is dropped."""
    scores_BQC = class_scores(prediction.class_logits_LBRC[-1].float(), config)
    scores_BQC = scores_BQC[:, : prediction.queries]
    pairs = scores_BQC.shape[1] * scores_BQC.shape[2]
    scores_BN, pair_BN = scores_BQC.flatten(1).topk(min(config.detections, pairs), dim=1)
    padded = batch.image_BCHW.shape[-2:]
    found = []
    for b in range(scores_BQC.shape[0]):
        query_N, label_N = pair_BN[b] // scores_BQC.shape[2], pair_BN[b] % scores_BQC.shape[2]
        query_U, which_N = query_N.unique(return_inverse=True)
        embedding_UE = prediction.mask_embedding_LBRE[-1, b, query_U].float()
        logits_UHW = torch.einsum("ue,ehw->uhw", embedding_UE, prediction.pixel_embedding_BEHW[b].float())
        parts = [
            _full_size(chunk, padded, batch.sizes[b], batch.original_sizes[b]) for chunk in logits_UHW.split(CHUNK)
        ]
        masks_UHW = torch.cat([masks for masks, _ in parts])
        mask_score_U = torch.cat([score for _, score in parts])
        boxes_U4 = _boxes(masks_UHW)

        mask_score_N = mask_score_U[which_N]
        total_N = scores_BN[b] * mask_score_N if config.score == "class*mask" else scores_BN[b]
        instances = Instances(total_N, label_N, masks_UHW[which_N], boxes_U4[which_N], scores_BN[b], mask_score_N)
        found.append(instances[_best_first(instances)])
    return found


def _best_first(instances: Instances) -> Tensor:
    order = instances.scores_N.argsort(descending=True, stable=True)
    return order[instances.masks_NHW.flatten(1).any(dim=1)[order]]


def _full_size(
    logits_NHW: Tensor, padded: torch.Size, valid: tuple[int, int], original: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Stride-4 logits -> masks at the original size, mean probability inside them."""
    logits = F.interpolate(logits_NHW[None], size=padded, mode="bilinear", align_corners=False)
    logits = logits[..., : valid[0], : valid[1]]
    if valid != original:
        logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)
    masks_NHW = logits[0] > 0
    inside = masks_NHW.flatten(1)
    probability = (logits[0].flatten(1).sigmoid() * inside).sum(1)
    return masks_NHW, probability / inside.sum(1).clamp(min=1)


def _boxes(masks_NHW: Tensor) -> Tensor:
    """-> [N, 4]: the tight box (x1, y1, x2, y2) with x2, y2 past the last pixel; zeros for an empty mask."""
    columns, rows = masks_NHW.any(dim=1).int(), masks_NHW.any(dim=2).int()
    first = torch.stack((columns.argmax(1), rows.argmax(1)), dim=1)
    past = torch.tensor(masks_NHW.shape[:0:-1], device=masks_NHW.device) - torch.stack(
        (columns.flip(1).argmax(1), rows.flip(1).argmax(1)), dim=1
    )
    return torch.cat((first, past), dim=1).float() * columns.any(dim=1, keepdim=True)
