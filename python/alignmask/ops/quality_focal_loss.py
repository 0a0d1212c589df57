"""Quality focal loss: public function.

Shapes: R rows (one query each), C classes.
"""

from __future__ import annotations

from torch import Tensor

from alignmask.ops import reference


def quality_focal_loss(
    logits_RC: Tensor, label_R: Tensor, iou_R: Tensor, gamma: float = 2.0, theta: float = 0.5
) -> Tensor:
    """Classification loss of Aligned Label Assignment (Eq. 2 and 3), one value per query.

    With s = sigmoid(logits): a row with a label has Σ_c |t_c - s_c|^γ · BCE(s_c, t_c), t = iou in the label's column and 0
    elsewhere; a row with label -1 has w_neg(iou) · Σ_c s_c^γ · BCE(s_c, 0), w_neg = 1 below θ, else b - k·iou^γ with
    k = b = 1 / (1 - θ^γ).

    Args:
        logits_RC: Class logits. fp64, fp32, fp16 or bf16; stable up to |logit| = 1e4.
        label_R: Class of the matched instance, or -1. int64 or int32.
        iou_R: IoU with the matched instance; for label -1 the largest IoU with any instance of the image. No gradient.
        gamma: γ, at least 1.
        theta: θ, in [0, 1).

    Returns:
        loss_R, dtype of `logits`; differentiable in `logits`.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, device, gamma or theta; on the CPU also a label outside [-1, C).
    """
    return reference.quality_focal_loss(logits_RC, label_R, iou_R, gamma, theta)
