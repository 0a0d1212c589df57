"""Quality focal loss and IoU-weighted negatives (Eq. 2 and 3).

Shapes: R rows (one query each), C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision


def check(logits: Tensor, label: Tensor, iou: Tensor, gamma: float, theta: float) -> None:
    """Raise TypeError or ValueError unless dtypes and sizes obey the contract of
    `alignmask.ops.quality_focal_loss`."""
    op = "quality_focal_loss"
    _check.bind(
        op,
        logits=(logits, "RC", _check.FLOATS),
        label=(label, "R", _check.INTS),
        iou=(iou, "R", _check.FLOATS),
    )
    if not (math.isfinite(gamma) and gamma >= 1):
        raise ValueError(
            f"{op}: gamma must be finite and at least 1 (below, the gradient is unbounded), got "
            f"{gamma}"
        )
    if not 0 <= theta < 1:
        raise ValueError(f"{op}: theta must be in [0, 1), got {theta}")


@in_full_precision
def quality_focal_loss(
    logits_RC: Tensor, label_R: Tensor, iou_R: Tensor, gamma: float = 2.0, theta: float = 0.5
) -> Tensor:
    """See `alignmask.ops.quality_focal_loss`."""
    check(logits_RC, label_R, iou_R, gamma, theta)
    _check.in_range("quality_focal_loss", "label", label_R, -1, logits_RC.shape[1])
    dtype = _check.compute_dtype(logits_RC.dtype)
    x_RC, iou_R = logits_RC.to(dtype), iou_R.detach().to(dtype)
    positive_R = label_R >= 0
    weight_R = torch.where(positive_R, 1, negative_weight(iou_R, gamma, theta))
    # s^gamma * BCE(s, 0), from log-sigmoids: no cancellation, no overflow
    terms_RC = weight_R[:, None] * (torch.exp(gamma * F.logsigmoid(x_RC)) * -F.logsigmoid(-x_RC))
    if terms_RC.shape[1]:
        column_R1 = label_R.long().clamp(min=0)[:, None]
        x_R1, t_R1 = x_RC.gather(1, column_R1), iou_R[:, None]
        bce_R1 = -t_R1 * F.logsigmoid(x_R1) - (1 - t_R1) * F.logsigmoid(-x_R1)
        as_positive_R1 = (t_R1 - x_R1.sigmoid()).abs() ** gamma * bce_R1
        kept_R1 = torch.where(positive_R[:, None], as_positive_R1, terms_RC.gather(1, column_R1))
        terms_RC = terms_RC.scatter(1, column_R1, kept_R1)
    return terms_RC.sum(1).to(logits_RC.dtype)


def negative_weight(iou: Tensor, gamma: float = 2.0, theta: float = 0.5) -> Tensor:
    """w_neg of Eq. (2): 1 below theta, then b - k * iou^gamma through (theta, 1) and (1, 0)."""
    k = 1 / (1 - theta**gamma)
    return torch.where(iou < theta, 1, k - k * iou**gamma)
