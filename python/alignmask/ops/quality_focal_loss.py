"""Quality focal loss: public function, operators, gradient.

Shapes: R rows (one query each), C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.quality_focal_loss import check


@accepts_arrays
def quality_focal_loss(
    logits_RC: Tensor, label_R: Tensor, iou_R: Tensor, gamma: float = 2.0, theta: float = 0.5
) -> Tensor:
    """Classification loss of Aligned Label Assignment (Eq. 2 and 3), one value per query.

    With s = sigmoid(logits): a row with a label has Σ_c |t_c - s_c|^γ · BCE(s_c, t_c), t = iou in
    the label's column and 0 elsewhere; a row with label -1 has w_neg(iou) · Σ_c s_c^γ · BCE(s_c,
    0), w_neg = 1 below θ, else b - k·iou^γ with k = b = 1 / (1 - θ^γ).

    Args:
        logits_RC: Class logits. fp64, fp32, fp16 or bf16; stable up to |logit| = 1e4.
        label_R: Class of the matched instance, or -1. int64 or int32.
        iou_R: IoU with the matched instance; for label -1 the largest IoU with any instance of the
            image. No gradient.
        gamma: γ, at least 1.
        theta: θ, in [0, 1).

    Returns:
        loss_R, dtype of `logits`; differentiable in `logits`.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, device, gamma or theta; on the CPU also a label outside [-1, C).
    """
    _check.tensors("quality_focal_loss", logits=logits_RC, label=label_R, iou=iou_R)
    if not _library.has_kernel("quality_focal_loss", logits_RC.device):
        return reference.quality_focal_loss(logits_RC, label_R, iou_R, gamma, theta)
    _library.refuse_tangents("quality_focal_loss", logits_RC)
    with_gradient = torch.is_grad_enabled() and logits_RC.requires_grad
    loss_R: Tensor = _forward(logits_RC, label_R, iou_R.detach(), gamma, theta, with_gradient)[0]
    return loss_R


def _forward_kernel(
    logits: Tensor, label: Tensor, iou: Tensor, gamma: float, theta: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    loss, gradient = _empty(logits, with_gradient)
    _library.core.quality_focal_loss_forward(
        loss,
        gradient if with_gradient else None,
        logits,
        label,
        iou,
        gamma,
        theta,
        torch.get_num_threads(),
        _library.stream(logits),
    )
    return loss, gradient


def _forward_fake(
    logits: Tensor, label: Tensor, iou: Tensor, gamma: float, theta: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    check(logits, label, iou, gamma, theta)
    return _empty(logits, with_gradient)


def _empty(logits: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Loss and gradient to be written; the gradient in the precision of the arithmetic, so that it
    is rounded only once."""
    if logits.dim() != 2:
        return logits.new_empty(0), logits.new_empty(0)  # the kernel's checks say what is wrong
    shape = tuple(logits.shape) if with_gradient else (0, 0)
    return logits.new_empty(logits.shape[0]), logits.new_empty(
        shape, dtype=_check.compute_dtype(logits.dtype)
    )


def _backward_any(grad_loss: Tensor, gradient: Tensor, logits: Tensor) -> Tensor:
    """logits: for their dtype, and so that autograd knows that the gradient depends on them: there
    is no second derivative."""
    return (gradient * grad_loss.to(gradient.dtype)[:, None]).to(logits.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, with_gradient, gradient = inputs[0], inputs[5], output[1]
    ctx.mark_non_differentiable(gradient)
    if not with_gradient:  # inside of vmap a tensor does not say that it requires a gradient
        gradient = _forward(logits.detach(), *inputs[1:5], True)[1]
    ctx.save_for_backward(gradient, logits)


def _gradient(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return _backward(grad_loss, *ctx.saved_tensors), None, None, None, None, None


_forward = _library.define(
    "quality_focal_loss",
    "(Tensor logits, Tensor label, Tensor iou, float gamma, float theta, bool with_gradient) -> "
    "(Tensor, Tensor)",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_backward = _library.define(
    "quality_focal_loss_backward",
    "(Tensor grad_loss, Tensor gradient, Tensor logits) -> Tensor",
    kernels={"cpu": _backward_any, "cuda": _backward_any},
    fake=_backward_any,
)
