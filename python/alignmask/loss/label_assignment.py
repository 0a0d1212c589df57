"""Aligned Label Assignment: the class and the mask IoU towards which every query is trained
(section 2.2, Eq. 2 and 3).

L outputs, B images, G instances of the whole batch, N positive rows of all outputs and images, H x
W pixels. R rows: first the Q object queries, then the A aligned queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask import ops
from alignmask.config import LossConfig
from alignmask.data.batch import Batch, sent
from alignmask.model.heads import Prediction

SHRUNK_AT_A_TIME = 64
"""Number of masks to reduce at once. As float32 they are four times as large, so this bounds the
memory."""


@dataclass
class Positives:
    """The rows with an instance, N in number, sorted by image: they have mask losses. The CPU knows
    them, so that nothing has to be counted on the device."""

    image_N: Tensor
    output_N: Tensor
    row_N: Tensor
    instance_N: Tensor
    """Index into the batch's instances."""
    counts: list[int]
    """Their number in each image."""


@dataclass
class Targets:
    """What every row is trained towards."""

    instance_LBR: Tensor
    """Index into the batch's instances; -1 for background."""
    label_LBR: Tensor
    """Class of that instance; -1 for background."""
    live_BR: Tensor
    """False for padding, which contributes to no loss."""
    iou_LBR: Tensor | None
    """IoU of the row's mask with its instance; for background, the greatest IoU with any instance
    of its image. None if the losses need no IoU."""
    positives: Positives


def assign(
    query_LG: Tensor,
    aligned_BA: Tensor | None,
    prediction: Prediction,
    batch: Batch,
    iou_LGR: Tensor | None,
) -> Targets:
    """Matched object queries and live aligned queries are positives, all other object queries
    background.

    query_LG, aligned_BA: the matched query of every instance and the instance of every aligned
    query, -1 for none; both on the CPU.
    """
    outputs, images, rows = prediction.class_logits_LBRC.shape[:3]
    device = prediction.class_logits_LBRC.device
    counts_B = torch.tensor(batch.counts, device="cpu")
    owner_G = torch.arange(images, device="cpu").repeat_interleave(counts_B)
    output_N, instance_N = (query_LG >= 0).nonzero(as_tuple=True)
    on_host_LBR = torch.full((outputs, images, rows), -1, device="cpu")
    on_host_LBR[output_N, owner_G[instance_N], query_LG[output_N, instance_N]] = instance_N
    live_BR = torch.ones(images, rows, dtype=torch.bool, device=device)
    if prediction.aligned is not None:
        assert aligned_BA is not None
        on_host_LBR[:, :, prediction.queries :] = aligned_BA
        live_BR[:, prediction.queries :] = prediction.aligned.live_BA

    instance_LBR = sent(on_host_LBR, device)
    positives = _positives(on_host_LBR, device)
    if not batch.labels_G.shape[0]:
        label_LBR = torch.full_like(instance_LBR, -1)
        no_iou_LBR = None if iou_LGR is None else torch.zeros_like(label_LBR, dtype=torch.float)
        return Targets(instance_LBR, label_LBR, live_BR, no_iou_LBR, positives)
    positive = instance_LBR >= 0
    index_LBR = instance_LBR.clamp(min=0)
    label_LBR = torch.where(positive, batch.labels_G[index_LBR], -1)
    if iou_LGR is None:
        return Targets(instance_LBR, label_LBR, live_BR, None, positives)
    own_LBR = iou_LGR.gather(1, index_LBR)
    owner = batch.owner_G[None, :, None].expand_as(iou_LGR)
    best_LBR = iou_LGR.new_zeros(outputs, images, rows).scatter_reduce(1, owner, iou_LGR, "amax")
    iou_LBR = torch.where(positive, own_LBR, best_LBR)
    return Targets(instance_LBR, label_LBR, live_BR, iou_LBR, positives)


def _positives(instance_LBR: Tensor, device: torch.device) -> Positives:
    """instance_LBR: on the CPU."""
    instance_BLR = instance_LBR.transpose(0, 1)
    image_N, output_N, row_N = (instance_BLR >= 0).nonzero(as_tuple=True)
    instance_N = instance_BLR[image_N, output_N, row_N]
    counts = image_N.bincount(minlength=len(instance_BLR)).tolist()
    found = sent(torch.stack((image_N, output_N, row_N, instance_N)), device)  # in one transfer
    return Positives(found[0], found[1], found[2], found[3], counts)


def quality_focal_loss(logits_LBRC: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """-> [L, B, R]: the classification loss of every row. With s = sigmoid(logits), summed over the
    classes,

        Eq. 3, positives:  |t_i - s_i|^gamma * BCE(s_i, t_i)
        Eq. 3, negatives:  w_neg_j * s_j^gamma * BCE(s_j, 0)
        Eq. 2:    w_neg = 1 if IoU < theta, else -k * IoU^gamma + b, through (theta, 1) and (1, 0)

    t is the IoU with the matched instance for its class, and 0 for every other class. One kernel
    computes all three; alignmask/ops/reference/quality_focal_loss.py is the same in plain PyTorch.
    """
    s_RC, class_R = logits_LBRC.flatten(0, 2), targets.label_LBR.flatten()
    iou_R = quality(logits_LBRC, targets, config).flatten()
    return ops.quality_focal_loss(s_RC, class_R, iou_R, config.gamma, config.theta).view_as(
        targets.label_LBR
    )


@torch.no_grad()
def quality(logits_LBRC: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """-> [L, B, R]: the IoU of Eq. 2 and 3, or what two switches put in its place."""
    assert targets.iou_LBR is not None
    iou_LBR, positive_LBR = targets.iou_LBR, targets.label_LBR >= 0
    if not config.weigh_negatives:
        iou_LBR = torch.where(positive_LBR, iou_LBR, 0)  # w_neg(0) = 1
    if config.target_score_share:
        # A score that equals the IoU keeps its target; any other gets a target between itself and
        # the IoU.
        score_LBR = logits_LBRC.gather(3, targets.label_LBR.clamp(min=0)[..., None])[
            ..., 0
        ].sigmoid()
        share = config.target_score_share
        iou_LBR = torch.where(positive_LBR, score_LBR**share * iou_LBR ** (1 - share), iou_LBR)
    return iou_LBR


@torch.no_grad()
def mask_ious(prediction: Prediction, batch: Batch, config: LossConfig) -> Tensor:
    """-> [L, G, R]: IoU of every row's whole mask (logit > 0) with every instance of its image."""
    size = prediction.pixel_embedding_BEHW.shape[2:]
    targets_GHW = (
        batch.masks_GHW if config.iou_resolution == "image" else shrink(batch.masks_GHW, size)
    )
    found = [
        ops.mask_iou(prediction.mask_logits(o), targets_GHW, batch.owner_G)
        for o in range(prediction.outputs)
    ]
    return torch.stack(found)


def shrink(masks_GHW: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Masks at a lower resolution: a cell is foreground if at least half of it is covered. A mask
    that would be empty keeps its best-covered cell; otherwise the target score of a tiny object
    would always be 0."""
    if masks_GHW.shape[0] == 0:
        return masks_GHW.new_zeros(0, *size)
    return torch.cat([_shrink(some_GHW, size) for some_GHW in masks_GHW.split(SHRUNK_AT_A_TIME)])


def _shrink(masks_GHW: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    coverage_GS = F.adaptive_avg_pool2d(masks_GHW.float()[:, None], (size[0], size[1])).flatten(1)
    best_G = coverage_GS.max(dim=1)
    lost_G = (best_G.values > 0) & (best_G.values < 0.5)
    only_best_GS = F.one_hot(best_G.indices, coverage_GS.shape[1]).bool()
    return torch.where(lost_G[:, None], only_best_GS, coverage_GS >= 0.5).unflatten(1, tuple(size))
