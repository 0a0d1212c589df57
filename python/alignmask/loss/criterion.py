"""The training losses: classification, mask BCE and dice at every output of the decoder, for both kinds of query.

L outputs, B images, R rows = Q object queries, then A aligned ones, N rows with a mask loss (all outputs and images, flat),
G instances of the whole batch, C class logits, K points, H x W the pixel embedding's size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from alignmask import ops
from alignmask.config import LossConfig, ModelConfig
from alignmask.data.batch import Batch
from alignmask.loss.label_assignment import Targets, assign, mask_ious, quality
from alignmask.loss.matcher import match
from alignmask.loss.points import sample_maps, sample_masks, uncertain_points
from alignmask.model.heads import Prediction


@dataclass
class Losses:
    """Unweighted losses, one value per output of the decoder (first: before its first layer)."""

    classification_L: Tensor
    mask_L: Tensor
    dice_L: Tensor
    aligned_classification_L: Tensor
    aligned_mask_L: Tensor
    aligned_dice_L: Tensor

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum that is minimised."""
        objects = _weighted(config, self.classification_L, self.mask_L, self.dice_L)
        aligned = _weighted(config, self.aligned_classification_L, self.aligned_mask_L, self.aligned_dice_L)
        return objects + config.aligned_weight * aligned

    def summary(self) -> dict[str, Tensor]:
        """Name -> loss at the last output, for the log."""
        return {f.name.removesuffix("_L"): getattr(self, f.name)[-1].detach() for f in fields(self)}


def _weighted(config: LossConfig, classification_L: Tensor, mask_L: Tensor, dice_L: Tensor) -> Tensor:
    return (config.class_weight * classification_L + config.mask_weight * mask_L + config.dice_weight * dice_L).sum()


class Criterion:
    """Prediction and batch -> Losses (section 2.2; everything the paper does not change is Mask2Former's)."""

    def __init__(self, model: ModelConfig, loss: LossConfig) -> None:
        self.model, self.loss = model, loss
        if not 0 <= loss.target_score_share < 1:
            raise ValueError(f"loss.target_score_share: expected a number in [0, 1), got {loss.target_score_share}")

    def __call__(self, prediction: Prediction, batch: Batch) -> Losses:
        with torch.autocast(prediction.class_logits_LBRC.device.type, enabled=False):
            iou_needed = self.model.classification == "quality_focal" or self.loss.iou_cost
            iou_LGR = mask_ious(prediction, batch, self.loss) if iou_needed else None
            query_LG = match(prediction, batch, self.loss, self.model.classification, iou_LGR=iou_LGR)
            targets = assign(query_LG, prediction, batch, iou_LGR)
            aligned_rows = torch.arange(targets.live_BR.shape[1], device=query_LG.device) >= prediction.queries
            norms = self._normalisers(prediction, batch)
            classification = self._classification(prediction, targets, aligned_rows, norms)
            masks = self._masks(prediction, batch, targets, norms)
        return Losses(classification[0], masks[0], masks[1], classification[1], masks[2], masks[3])

    @staticmethod
    def _normalisers(prediction: Prediction, batch: Batch) -> Tensor:
        """-> [2]: instances, live aligned queries; each the mean over all processes and at least 1."""
        live = prediction.aligned.live_BA.sum() if prediction.aligned is not None else 0
        counts = prediction.class_logits_LBRC.new_tensor([len(batch.labels_G), 0], dtype=torch.float32)
        counts[1] = live
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            counts = counts / torch.distributed.get_world_size()
        return counts.clamp(min=1)

    def _classification(
        self, prediction: Prediction, targets: Targets, aligned_R: Tensor, norms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> the losses [L] of object queries and of aligned queries."""
        logits_LBRC, label_LBR = prediction.class_logits_LBRC.float(), targets.label_LBR
        classes = self.model.num_classes
        if self.model.classification == "softmax":
            return self._cross_entropy(logits_LBRC, targets, aligned_R)
        if self.model.classification == "focal":
            one_hot = F.one_hot(label_LBR.clamp(min=0), classes) * (label_LBR >= 0)[..., None]
            loss_LBR = sigmoid_focal_loss(logits_LBRC, one_hot.float(), gamma=self.loss.gamma).sum(-1)
        else:
            loss = ops.quality_focal_loss(
                logits_LBRC.flatten(0, 2),
                label_LBR.flatten(),
                quality(logits_LBRC, targets, self.loss).flatten(),
                self.loss.gamma,
                self.loss.theta,
            )
            loss_LBR = loss.view_as(label_LBR)
        loss_LBR = loss_LBR * targets.live_BR
        objects, aligned = loss_LBR * ~aligned_R, loss_LBR * aligned_R
        return objects.sum((1, 2)) / norms[0], aligned.sum((1, 2)) / norms[1]

    def _cross_entropy(self, logits_LBRC: Tensor, targets: Targets, aligned_R: Tensor) -> tuple[Tensor, Tensor]:
        """Mask2Former's: a weighted mean over queries, with a light "no object" class."""
        classes = self.model.num_classes
        label_LBR = torch.where(targets.label_LBR >= 0, targets.label_LBR, classes)
        loss_LBR = F.cross_entropy(logits_LBRC.flatten(0, 2), label_LBR.flatten(), reduction="none").view_as(label_LBR)
        weight_LBR = torch.where(label_LBR == classes, self.loss.no_object_weight, 1.0) * targets.live_BR

        def mean(rows_R: Tensor) -> Tensor:
            weight = weight_LBR * rows_R
            return (loss_LBR * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)

        return mean(~aligned_R), mean(aligned_R)

    def _masks(self, prediction: Prediction, batch: Batch, targets: Targets, norms: Tensor) -> tuple[Tensor, ...]:
        """-> BCE [L] and dice [L] of object queries, then of aligned queries."""
        outputs = targets.instance_LBR.shape[0]
        # Image-major, so that every image's pixel embedding is contracted once, with its own positive rows alone.
        image_N, output_N, row_N = (targets.instance_LBR >= 0).transpose(0, 1).nonzero(as_tuple=True)
        instance_N = targets.instance_LBR[output_N, image_N, row_N]
        embedding_NE = prediction.mask_embedding_LBRE[output_N, image_N, row_N].float()
        rows_B = torch.bincount(image_N, minlength=batch.batch_size).tolist()
        logits_NHW = torch.cat(
            [
                torch.einsum("ne,ehw->nhw", embedding, pixels)
                for embedding, pixels in zip(
                    embedding_NE.split(rows_B), prediction.pixel_embedding_BEHW.float(), strict=True
                )
            ]
        )
        c = self.loss
        points_NK2 = uncertain_points(logits_NHW, c.points, c.oversample, c.importance)
        logits_NK = sample_maps(logits_NHW, points_NK2)
        with torch.no_grad():
            target_NK = sample_masks(batch.masks_GHW, instance_N, points_NK2)
        bce_N = F.binary_cross_entropy_with_logits(logits_NK, target_NK, reduction="none").mean(1)
        probability_NK = logits_NK.sigmoid()
        overlap_N = (probability_NK * target_NK).sum(1)
        dice_N = 1 - (2 * overlap_N + 1) / (probability_NK.sum(1) + target_NK.sum(1) + 1)

        # One bin per kind of query and output.
        aligned_N = row_N >= prediction.queries
        bin_N = aligned_N.long() * outputs + output_N
        bce, dice = (loss_N.new_zeros(2 * outputs).index_add(0, bin_N, loss_N) for loss_N in (bce_N, dice_N))
        return bce[:outputs] / norms[0], dice[:outputs] / norms[0], bce[outputs:] / norms[1], dice[outputs:] / norms[1]
