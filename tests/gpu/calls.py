"""Every op, forward and backward, from inputs on any device."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from alignmask import ops
from tests.ops import cases

SHAPES = {
    "ms_deform_attn": (
        cases.MS_DEFORM_ATTN["odd"],
        cases.DeformShape(2, ((5, 7), (3, 4)), 4, 32, 130, 4),
    ),
    "ms_deform_attn_from_offsets": (
        cases.MS_DEFORM_ATTN["odd"],
        cases.DeformShape(2, ((5, 7), (3, 4)), 4, 32, 130, 4),
    ),
    "masked_point_pool": (
        cases.MASKED_POINT_POOL["odd"],
        cases.PoolShape(2, 256, (16, 16), (64, 64), 5, 2, 300),
    ),
    "mask_iou": (cases.MASK_IOU["odd"], cases.IouShape(2, 20, (16, 32), 4, 40)),
    "mask_points": (
        cases.MASK_POINTS["odd"],
        cases.PointsShape(20, (40, 56), (160, 224), 5, 700),
    ),
    "quality_focal_loss": (cases.QUALITY_FOCAL_LOSS["odd"], cases.LossShape(300, 80)),
}
Inputs = list[object]


def inputs(op: str, large: bool, dtype: torch.dtype) -> Inputs:
    """On the CPU. Points are not in half precision: there, many lie where the gradient in their
    location jumps."""
    points = (
        {"points_dtype": torch.float32 if dtype.itemsize == 2 else dtype}
        if op not in ("mask_iou", "mask_points", "quality_focal_loss")
        else {}
    )
    made = getattr(cases, op)(SHAPES[op][large], dtype=dtype, **points)
    if op == "masked_point_pool":
        made = (made[0].to(memory_format=torch.channels_last), *made[1:])
    return list(made)


def to(
    given: Sequence[object], device: str | torch.device, dtype: torch.dtype | None = None
) -> Inputs:
    def moved(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return x.to(
            device=device, dtype=dtype if dtype is not None and x.is_floating_point() else x.dtype
        )

    return [moved(x) for x in given]


def run(op: str, given: Sequence[object]) -> list[Tensor]:
    """Outputs, then the gradients of all that has one, for a fixed random gradient of the first
    output."""
    leaves = [
        x.detach().requires_grad_() if _has_gradient(op, i, x) else x for i, x in enumerate(given)
    ]
    out = getattr(ops, op)(*leaves)
    outs: tuple[Tensor, ...] = out if isinstance(out, tuple) else (out,)
    wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    if not wanted:
        return list(outs)
    gradients = torch.autograd.grad(
        outs[0], wanted, _random(outs[0].shape, outs[0].dtype, outs[0].device)
    )
    return [x.detach() for x in outs] + list(gradients)


@functools.cache
def _random(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: a copy to a GPU waits for it, and cannot be captured in a graph."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return numbers.to(dtype).to(device)


def _has_gradient(op: str, position: int, x: object) -> bool:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    return op.startswith("ms_deform_attn") or (op != "mask_iou" and position == 0)
