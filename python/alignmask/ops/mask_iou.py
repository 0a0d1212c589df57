"""IoU of predicted with target masks: public function, operator.

Shapes: B images, Q predictions per image, H x W, G targets of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.mask_iou import check


@accepts_arrays
def mask_iou(
    predictions_BQHW: Tensor, targets_GHW: Tensor, owner_G: Tensor, threshold: float = 0.0
) -> Tensor:
    """IoU of every target with all predictions of its image (the IoU of Eq. 2 and 3).

    Args:
        predictions_BQHW: Mask logits; a pixel is foreground where the logit > `threshold`. NaN is
            background. fp64, fp32, fp16 or bf16.
        targets_GHW: Masks, bool or uint8 (non-zero is foreground), at the predictions' size or at
            an integer multiple of it, the same on both sides: then the logits are upsampled as by
            `F.interpolate(mode="bilinear", align_corners=False)`.
        owner_G: Index of every target's image, int64 or int32.
        threshold: On the scale of `predictions`.

    Returns:
        iou_GQ: float32 (float64 for float64 predictions), without gradient. Two empty masks have
            IoU 0.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device; on the CPU also an owner outside [0, B).
    """
    _check.tensors("mask_iou", predictions=predictions_BQHW, targets=targets_GHW, owner=owner_G)
    if not _library.has_kernel("mask_iou", predictions_BQHW.device):
        return reference.mask_iou(predictions_BQHW, targets_GHW, owner_G, threshold)
    iou_GQ: Tensor = _forward(predictions_BQHW.detach(), targets_GHW, owner_G, threshold)
    return iou_GQ


def _forward_kernel(
    predictions: Tensor, targets: Tensor, owner: Tensor, threshold: float
) -> Tensor:
    iou = _empty(predictions, owner)
    _library.core.mask_iou_forward(
        iou,
        predictions,
        targets,
        owner,
        threshold,
        torch.get_num_threads(),
        _library.workspace(predictions),
        _library.stream(predictions),
    )
    return iou


def _forward_fake(predictions: Tensor, targets: Tensor, owner: Tensor, threshold: float) -> Tensor:
    check(predictions, targets, owner)
    return _empty(predictions, owner)


def _empty(predictions: Tensor, owner: Tensor) -> Tensor:
    if predictions.dim() != 4 or owner.dim() != 1:
        return predictions.new_empty(0)  # the kernel's checks say what is wrong
    return predictions.new_empty(
        owner.shape[0], predictions.shape[1], dtype=_check.compute_dtype(predictions.dtype)
    )


_forward = _library.define(
    "mask_iou",
    "(Tensor predictions, Tensor targets, Tensor owner, float threshold) -> Tensor",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
)
