"""Names of the Deformable DETR extension `MultiScaleDeformableAttention`, with its signatures, on
our kernels.

    import alignmask.ops.compat as MultiScaleDeformableAttention

or, where code that is not to be changed imports the extension by its name, once before it does:

    alignmask.ops.compat.install()

The level shapes are tensors here, as in the extension, and are read on every call; from a GPU that
waits for the device. `alignmask.ops.ms_deform_attn` takes Python ints and does not wait.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P
points, E = N·D.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignmask.ops import _check, ms_deform_attn
from alignmask.ops.ms_deform_attn import gradients

__all__ = ["MSDeformAttnFunction", "install", "ms_deform_attn_backward", "ms_deform_attn_forward"]

EXTENSION = "MultiScaleDeformableAttention"


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """`alignmask.ops.ms_deform_attn`, not differentiable in this form.

    Args:
        value: [B, S, N, D].
        value_spatial_shapes: [L, 2], int64: (h, w) of every level.
        value_level_start_index: [L], int64: the first token of every level. It must follow from the
            shapes.
        sampling_locations: [B, Q, N, L, P, 2].
        attention_weights: [B, Q, N, L, P].
        im2col_step: Ignored.

    Returns:
        [B, Q, E].

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device, or a start index that does not follow from the shapes.
    """
    levels = _levels("ms_deform_attn_forward", value_spatial_shapes, value_level_start_index)
    with torch.no_grad():
        return ms_deform_attn(value, levels, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights for `grad_output`, [B, Q, E].

    Further arguments and errors are those of `ms_deform_attn_forward`.
    """
    levels = _levels("ms_deform_attn_backward", value_spatial_shapes, value_level_start_index)
    return gradients(grad_output, value, levels, sampling_locations, attention_weights)


class MSDeformAttnFunction(torch.autograd.Function):
    """`MSDeformAttnFunction.apply` with the arguments of `ms_deform_attn_forward`;
    differentiable."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        levels = _levels("MSDeformAttnFunction", value_spatial_shapes, value_level_start_index)
        ctx.levels = levels
        ctx.save_for_backward(value, sampling_locations, attention_weights)
        return ms_deform_attn(value, levels, sampling_locations, attention_weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        grads = gradients(grad_output, value, ctx.levels, locations, weights)
        return grads[0], None, None, grads[1], grads[2], None


def install() -> None:
    """Let `import MultiScaleDeformableAttention` find this module, whether or not the extension is
    there."""
    sys.modules[EXTENSION] = sys.modules[__name__]


def _levels(function: str, shapes: Tensor, start: Tensor) -> list[tuple[int, int]]:
    _check.bind(
        function,
        value_spatial_shapes=(shapes, "L2", (torch.int64,)),
        value_level_start_index=(start, "L", (torch.int64,)),
    )
    levels = [(h, w) for h, w in shapes.tolist()]
    token = 0
    for index, ((h, w), given) in enumerate(zip(levels, start.tolist(), strict=True)):
        if given != token:
            raise ValueError(
                f"{function}: value_level_start_index[{index}] = {given}, but value_spatial_shapes "
                f"{levels} make it {token}"
            )
        token += h * w
    return levels
