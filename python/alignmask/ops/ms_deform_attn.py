"""Multi-scale deformable attention: public function, operators, gradient.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops.reference.ms_deform_attn import check


def ms_deform_attn(
    value_BSND: Tensor, level_shapes: Sequence[tuple[int, int]], locations_BQNLP2: Tensor, weights_BQNLP: Tensor
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR; the pixel decoder of section 2.1).

    out[b, q, n] = Σ_l Σ_p weights[b, q, n, l, p] · bilinear(value of level l, locations[b, q, n, l, p])

    Args:
        value_BSND: Tokens of all levels, level after level, rows before columns; S = Σ h·w. fp64, fp32, fp16 or bf16.
        level_shapes: (h, w) of every level, as Python ints.
        locations_BQNLP2: (x, y), normalised to [0, 1] over a level, `align_corners=False`, zero outside: exactly
            `F.grid_sample(2 * locations - 1, mode="bilinear", padding_mode="zeros")`.
        weights_BQNLP: Attention weights.

    `locations` and `weights` have the dtype of `value`, or float32 beside a half-precision `value`. Any strides are accepted.
    Arithmetic and accumulation are in float32 (float64 for float64). A NaN location gives NaN, an infinite one is outside;
    nothing is sampled from an empty level.

    Returns:
        out_BQE, E = N·D, dtype of `value`. Differentiable in value, locations and weights; deterministic on the CPU.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device, or levels that do not add up to S. The message names the argument.
    """
    _check.tensors("ms_deform_attn", value=value_BSND, locations=locations_BQNLP2, weights=weights_BQNLP)
    if not _library.has_kernel("ms_deform_attn", value_BSND.device.type):
        return reference.ms_deform_attn(value_BSND, level_shapes, locations_BQNLP2, weights_BQNLP)
    _check.pairs("ms_deform_attn", "level_shapes", level_shapes)
    sizes = [size for level in level_shapes for size in level]
    out: Tensor = _forward(value_BSND, sizes, locations_BQNLP2, weights_BQNLP)
    return out


def _forward_cpu(value: Tensor, level_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    out = _empty_out(value, locations)
    _library.core.ms_deform_attn_forward(out, value, level_shapes, locations, weights, torch.get_num_threads())
    return out


def _forward_fake(value: Tensor, level_shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    check(value, list(zip(level_shapes[::2], level_shapes[1::2], strict=True)), locations, weights)
    return _empty_out(value, locations)


def _empty_out(value: Tensor, locations: Tensor) -> Tensor:
    if value.dim() != 4 or locations.dim() != 6:
        return value.new_empty(0)  # the kernel's checks say what is wrong
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _backward_cpu(
    grad_out: Tensor, value: Tensor, level_shapes: list[int], locations: Tensor, weights: Tensor, needed: list[bool]
) -> tuple[Tensor, ...]:
    gradients = _backward_fake(grad_out, value, level_shapes, locations, weights, needed)
    outputs = [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]
    _library.core.ms_deform_attn_backward(
        *outputs, grad_out, value, level_shapes, locations, weights, torch.get_num_threads()
    )
    return gradients


def _backward_fake(
    grad_out: Tensor, value: Tensor, level_shapes: list[int], locations: Tensor, weights: Tensor, needed: list[bool]
) -> tuple[Tensor, ...]:
    """A gradient that is not needed is an empty tensor."""
    return tuple(
        tensor.new_empty(tensor.shape if need else (0,))
        for tensor, need in zip((value, locations, weights), needed, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    gradients = _backward(grad_out, value, ctx.level_shapes, locations, weights, needed)
    value, locations, weights = (gradient if need else None for gradient, need in zip(gradients, needed, strict=True))
    return value, None, locations, weights


_forward = _library.define(
    "ms_deform_attn",
    "(Tensor value, SymInt[] level_shapes, Tensor locations, Tensor weights) -> Tensor",
    kernels={"cpu": _forward_cpu},
    fake=_forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_backward = _library.define(
    "ms_deform_attn_backward",
    "(Tensor grad_out, Tensor value, SymInt[] level_shapes, Tensor locations, Tensor weights, bool[3] needed)"
    " -> (Tensor, Tensor, Tensor)",
    kernels={"cpu": _backward_cpu},
    fake=_backward_fake,
)
