"""IoU of predicted with target masks: public function.

Shapes: B images, Q predictions per image, H x W, G targets of the batch.
"""

from __future__ import annotations

from torch import Tensor

from alignmask.ops import reference


def mask_iou(predictions_BQHW: Tensor, targets_GHW: Tensor, owner_G: Tensor, threshold: float = 0.0) -> Tensor:
    """IoU of every target with all predictions of its image (the IoU of Eq. 2 and 3).

    Args:
        predictions_BQHW: Mask logits; a pixel is foreground where the logit > `threshold`. NaN is background.
            fp64, fp32, fp16 or bf16.
        targets_GHW: Masks, bool or uint8 (non-zero is foreground), at the predictions' size or at an integer multiple of it,
            the same on both sides: then the logits are upsampled as by `F.interpolate(mode="bilinear", align_corners=False)`.
        owner_G: Index of every target's image, int64 or int32.
        threshold: On the scale of `predictions`.

    Returns:
        iou_GQ: float32 (float64 for float64 predictions), without gradient. Two empty masks have IoU 0.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device; on the CPU also an owner outside [0, B).
    """
    return reference.mask_iou(predictions_BQHW, targets_GHW, owner_G, threshold)
