"""The training losses: classification, mask BCE and dice at every output of the decoder, for both
kinds of query.

L outputs, B images, N rows with a mask loss (all outputs and images, flat), C class logits, E
channels, K points, H x W the pixel embedding's size. R rows: first the Q object queries, then the A
aligned queries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from alignmask.config import LossConfig, ModelConfig
from alignmask.data.batch import Batch
from alignmask.loss.label_assignment import Targets, assign, mask_ious, quality_focal_loss
from alignmask.loss.matcher import match
from alignmask.loss.normalisers import Normalisers, count
from alignmask.loss.points import uncertain_samples
from alignmask.model.heads import Prediction


@dataclass
class LossTerms:
    """Unweighted losses of one kind of query, one value per output of the decoder (first: before
    its first layer)."""

    classification_L: Tensor
    mask_L: Tensor
    dice_L: Tensor

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum."""
        return (
            config.class_weight * self.classification_L
            + config.mask_weight * self.mask_L
            + config.dice_weight * self.dice_L
        ).sum()


@dataclass
class Losses:
    """The losses of object queries and of aligned queries."""

    objects: LossTerms
    aligned: LossTerms
    iou: Tensor | None = None
    """The squared error of the predicted IoUs."""

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum that is minimised."""
        found = self.objects.total(config) + config.aligned_weight * self.aligned.total(config)
        return found if self.iou is None else found + config.iou_weight * self.iou

    def summary(self) -> dict[str, Tensor]:
        """Name -> loss at the last output, for the log."""
        return {
            prefix + field.name.removesuffix("_L"): getattr(terms, field.name)[-1].detach()
            for prefix, terms in (("", self.objects), ("aligned_", self.aligned))
            for field in fields(terms)
        }


class Criterion:
    """Prediction and batch -> Losses (section 2.2; what the paper does not change is as in
    Mask2Former)."""

    def __init__(self, model_config: ModelConfig, loss_config: LossConfig) -> None:
        self.model_config, self.loss_config = model_config, loss_config
        share = loss_config.target_score_share
        if not 0 <= share < 1:
            raise ValueError(f"loss.target_score_share: expected a number in [0, 1), got {share}")

    def __call__(
        self, prediction: Prediction, batch: Batch, normalisers: Normalisers | None = None
    ) -> Losses:
        """normalisers: Of the step that the batch is a part of. None: the batch is all that its
        process has in this step."""
        classification, config = self.model_config.classification, self.loss_config
        with torch.autocast(prediction.class_logits_LBRC.device.type, enabled=False):
            iou_needed = (
                classification == "quality_focal" or config.iou_cost or self.model_config.iou_head
            )
            iou_LGR = mask_ious(prediction, batch, config) if iou_needed else None
            aligned_BA: Tensor | None = None
            live: Tensor | int = 0
            if prediction.aligned is not None:
                live = prediction.aligned.live_BA.sum()
                # `match` waits for all that the device has been given by then.
                aligned_BA = prediction.aligned.instance_BA.to("cpu", non_blocking=True)
            query_LG = match(prediction, batch, config, classification, iou_LGR=iou_LGR)
            targets = assign(query_LG, aligned_BA, prediction, batch, iou_LGR)
            norm = normalisers or Normalisers.of_step([self.count(batch, live)])
            classification_2L = self._classification(prediction, targets, norm.classification_2)
            mask_2L, dice_2L = self._masks(prediction, batch, targets, norm.masks_2)
            iou = self._iou(prediction, targets, norm.masks_2)
        objects, aligned = (
            LossTerms(*terms) for terms in zip(classification_2L, mask_2L, dice_2L, strict=True)
        )
        return Losses(objects, aligned, iou)

    def count(self, batch: Batch, live: Tensor | int) -> Tensor:
        """-> [3]: what the batch, with so many live aligned queries, adds to the normalisers of its
        step."""
        return count(batch, live, self.model_config, self.loss_config)

    def _classification(self, prediction: Prediction, targets: Targets, norm_2: Tensor) -> Tensor:
        """-> [2, L]."""
        logits_LBRC = prediction.class_logits_LBRC.float()
        kind_2R = prediction.kind_2R[:, None, None]
        if self.model_config.classification == "softmax":
            loss_LBR = self._cross_entropy(logits_LBRC, targets)
        elif self.model_config.classification == "focal":
            loss_LBR = self._focal_loss(logits_LBRC, targets)
        else:
            loss_LBR = quality_focal_loss(logits_LBRC, targets, self.loss_config)
        return (loss_LBR * targets.live_BR * kind_2R).sum((2, 3)) / norm_2[:, None]

    def _cross_entropy(self, logits_LBRC: Tensor, targets: Targets) -> Tensor:
        """-> [L, B, R]. "No object" has a low weight (Mask2Former)."""
        no_object = self.model_config.num_classes
        label_LBR = torch.where(targets.label_LBR >= 0, targets.label_LBR, no_object)
        loss_LBR = F.cross_entropy(
            logits_LBRC.flatten(0, 2), label_LBR.flatten(), reduction="none"
        ).view_as(label_LBR)
        weight_LBR = torch.where(label_LBR == no_object, self.loss_config.no_object_weight, 1.0)
        return loss_LBR * weight_LBR

    def _focal_loss(self, logits_LBRC: Tensor, targets: Targets) -> Tensor:
        """-> [L, B, R]."""
        label_LBR = targets.label_LBR
        one_hot_LBRC = (
            F.one_hot(label_LBR.clamp(min=0), self.model_config.num_classes)
            * (label_LBR >= 0)[..., None]
        )
        return sigmoid_focal_loss(
            logits_LBRC, one_hot_LBRC.float(), gamma=self.loss_config.gamma
        ).sum(-1)

    def _iou(self, prediction: Prediction, targets: Targets, norm_2: Tensor) -> Tensor | None:
        """Of the matched queries of the last output."""
        if prediction.iou_logits_BQ is None:
            return None
        assert targets.iou_LBR is not None
        queries = prediction.queries
        error_BQ = prediction.iou_logits_BQ.float().sigmoid() - targets.iou_LBR[-1, :, :queries]
        matched_BQ = targets.instance_LBR[-1, :, :queries] >= 0
        return (error_BQ.square() * matched_BQ).sum() / norm_2[0]

    def _masks(
        self, prediction: Prediction, batch: Batch, targets: Targets, norm_2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> [2, L]: BCE and dice."""
        config = self.loss_config
        # The rows are sorted by image, so that each pixel embedding is multiplied once, by the
        # positive rows of its own image.
        rows = targets.positives
        embedding_NE = prediction.mask_embedding_LBRE[
            rows.output_N, rows.image_N, rows.row_N
        ].float()
        pixels_BEHW = prediction.pixel_embedding_BEHW.float()
        parts = zip(embedding_NE.split(rows.counts), pixels_BEHW, strict=True)
        logits_NHW = torch.cat([torch.einsum("ne,ehw->nhw", *part) for part in parts])

        logits_NK, target_NK = uncertain_samples(
            logits_NHW,
            batch.masks_GHW,
            rows.instance_N,
            config.points,
            config.oversample,
            config.importance,
        )
        bce_N = F.binary_cross_entropy_with_logits(logits_NK, target_NK, reduction="none").mean(1)
        probability_NK = logits_NK.sigmoid()
        overlap_N = (probability_NK * target_NK).sum(1)
        dice_N = 1 - (2 * overlap_N + 1) / (probability_NK.sum(1) + target_NK.sum(1) + 1)

        outputs = prediction.outputs
        # One bin per kind of query and output.
        bin_N = (rows.row_N >= prediction.queries) * outputs + rows.output_N
        bce_2L, dice_2L = (
            loss_N.new_zeros(2 * outputs).index_add(0, bin_N, loss_N).view(2, outputs)
            for loss_N in (bce_N, dice_N)
        )
        return bce_2L / norm_2[:, None], dice_2L / norm_2[:, None]
