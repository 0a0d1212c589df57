"""Points for mask losses, as PointRend draws them in training, with logits and targets there:
public function, operators, gradient.

Shapes: R rows, H x W logits, G masks, K points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.mask_points import check, check_numbers, counts


@accepts_arrays
def mask_points(
    logits_RHW: Tensor,
    masks_GHW: Tensor,
    index_R: Tensor,
    points: int,
    seed: int,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points at which a mask loss looks, most of them where the mask is uncertain (PointRend's
    sampling in training), and what is there.

    Every row draws `oversample · points` random candidates, keeps the `importance · points` of them
    whose logits are nearest to 0, and draws the rest anew. All sampling is bilinear,
    `align_corners=False`, zero outside. The points depend on the seed, the row's number and its
    logits alone, on every device: candidates come from Philox4x32-10, a counter-based generator,
    and every implementation rounds alike.

    Args:
        logits_RHW: Mask logits. fp64, fp32, fp16 or bf16; sides of at most 2^22 pixels.
        masks_GHW: Masks that the rows are trained towards, bool or uint8 (non-zero counts as 1);
            any size, not that of logits.
        index_R: Which mask is a row's, int64 or int32.
        points: K, the number of points of a row.
        seed: Of all random points; 64 bits. Calls with the same seed have the same candidates.
        oversample: Candidates per point; at least `importance`.
        importance: Share of the points that are chosen among candidates, in [0, 1].

    Returns:
        logits_RK: `logits` at the points, in their dtype; differentiable in `logits`.
        targets_RK: The row's mask at the points, in [0, 1]; float32 (float64 for float64), without
            gradient.
        points_RK2: (x, y) in [0, 1), first those that were chosen; dtype of the targets, without
            gradient.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, device or number; on the CPU also an index outside [0, G).
    """
    op = "mask_points"
    _check.tensors(op, logits=logits_RHW, masks=masks_GHW, index=index_R)
    if not _library.has_kernel(op, logits_RHW.device):
        return reference.mask_points(
            logits_RHW, masks_GHW, index_R, points, seed, oversample, importance
        )
    check_numbers(points, seed, oversample, importance)
    _library.refuse_tangents(op, logits_RHW)
    logits_RK, targets_RK, points_RK2 = _forward(
        logits_RHW, masks_GHW, index_R, seed, points, *counts(points, oversample, importance)
    )
    return logits_RK, targets_RK, points_RK2


def _forward_kernel(
    logits: Tensor,
    masks: Tensor,
    index: Tensor,
    seed: int,
    points: int,
    candidates: int,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty(logits, points)
    _library.core.mask_points_forward(
        *outputs,
        logits,
        masks,
        index,
        seed,
        candidates,
        kept,
        torch.get_num_threads(),
        _library.stream(logits),
    )
    return outputs


def _forward_fake(
    logits: Tensor,
    masks: Tensor,
    index: Tensor,
    seed: int,
    points: int,
    candidates: int,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check(logits, masks, index)
    return _empty(logits, points)


def _empty(logits: Tensor, points: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0] if logits.dim() else 0
    dtype = _check.compute_dtype(logits.dtype)
    return (
        logits.new_empty(rows, points),
        logits.new_empty(rows, points, dtype=dtype),
        logits.new_empty(rows, points, 2, dtype=dtype),
    )


def _backward_kernel(grad_sampled: Tensor, points: Tensor, size: list[int]) -> Tensor:
    grad_logits = _empty_gradient(grad_sampled, points, size)
    _library.core.mask_points_backward(
        grad_logits,
        grad_sampled,
        points,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _library.workspace(grad_logits),
        _library.stream(grad_logits),
    )
    return grad_logits


def _empty_gradient(grad_sampled: Tensor, points: Tensor, size: list[int]) -> Tensor:
    return grad_sampled.new_empty(size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, targets, points = output
    ctx.size = inputs[0].shape
    ctx.mark_non_differentiable(points, targets)
    ctx.save_for_backward(points)


def _gradient(ctx: Any, grad_sampled: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_logits = _backward(grad_sampled, *ctx.saved_tensors, ctx.size)
    return grad_logits, None, None, None, None, None, None


_forward = _library.define(
    "mask_points",
    "(Tensor logits, Tensor masks, Tensor index, SymInt seed, SymInt points, SymInt candidates, "
    "SymInt kept) -> (Tensor, Tensor, Tensor)",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_backward = _library.define(
    "mask_points_backward",
    "(Tensor grad_sampled, Tensor points, SymInt[] size) -> Tensor",
    kernels={"cpu": _backward_kernel, "cuda": _backward_kernel},
    fake=_empty_gradient,
)
