"""Multi-scale deformable attention: public functions of both forms, operators, gradient.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P
points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.ms_deform_attn import check


@accepts_arrays
def ms_deform_attn(
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    locations_BQNLP2: Tensor,
    weights_BQNLP: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR; the pixel decoder of section 2.1).

    out[b, q, n] = Σ_l Σ_p weights[b, q, n, l, p] · bilinear(value of level l, locations[b, q, n, l,
    p])

    Args:
        value_BSND: Tokens of all levels, level after level, rows before columns; S = Σ h·w. fp64,
            fp32, fp16 or bf16.
        level_shapes: (h, w) of every level, as Python ints.
        locations_BQNLP2: (x, y), normalised to [0, 1] over a level, `align_corners=False`, zero
            outside: exactly `F.grid_sample(2 * locations - 1, mode="bilinear",
            padding_mode="zeros")`.
        weights_BQNLP: Attention weights.

    `locations` and `weights` have the dtype of `value`, or float32 beside a half-precision `value`.
    Any strides are accepted. Arithmetic and accumulation are in float32 (float64 for float64). A
    NaN location gives NaN, an infinite one is outside; nothing is sampled from an empty level.

    Returns:
        out_BQE, E = N·D, dtype of `value`. Differentiable in value, locations and weights;
        deterministic on the CPU.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device, or levels that do not add up to S. The message names
            the argument.
    """
    _check.tensors(
        "ms_deform_attn", value=value_BSND, locations=locations_BQNLP2, weights=weights_BQNLP
    )
    if not _library.has_kernel("ms_deform_attn", value_BSND.device):
        return reference.ms_deform_attn(value_BSND, level_shapes, locations_BQNLP2, weights_BQNLP)
    _library.refuse_tangents("ms_deform_attn", value_BSND, locations_BQNLP2, weights_BQNLP)
    out: Tensor = _forward(
        value_BSND, _flat("ms_deform_attn", level_shapes), locations_BQNLP2, weights_BQNLP, None
    )
    return out


@accepts_arrays
def ms_deform_attn_from_offsets(
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_BQL2: Tensor,
    offsets_BQNLP2: Tensor,
    logits_BQNLP: Tensor,
) -> Tensor:
    """`ms_deform_attn` from what a network predicts: the kernel computes locations and weights
    itself.

    locations = reference + offsets / (w, h), weights = softmax of the logits over all levels and
    points of a query and head.

    Args:
        value_BSND: Tokens of all levels, as for `ms_deform_attn`.
        level_shapes: (h, w) of every level, as Python ints.
        reference_BQL2: (x, y), normalised to [0, 1] over a level. Often the same for all images and
            levels: `expand` it, no copy is made.
        offsets_BQNLP2: (x, y) in pixels of the level.
        logits_BQNLP: Attention weights before the softmax.

    `reference`, `offsets` and `logits` have the dtype of `value`, or float32 beside a
    half-precision `value`. Any strides are accepted. Arithmetic, softmax and accumulation are in
    float32 (float64 for float64). What is not finite behaves as in `ms_deform_attn` and in
    `torch.softmax`; an empty level has its part in the softmax and samples nothing.

    Returns:
        out_BQE, E = N·D, dtype of `value`. Differentiable in all four tensors; deterministic on the
        CPU.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device, or levels that do not add up to S. The message names
            the argument.
    """
    name = "ms_deform_attn_from_offsets"
    _check.tensors(
        name,
        value=value_BSND,
        reference=reference_BQL2,
        offsets=offsets_BQNLP2,
        logits=logits_BQNLP,
    )
    if not _library.has_kernel("ms_deform_attn", value_BSND.device):
        return reference.ms_deform_attn_from_offsets(
            value_BSND, level_shapes, reference_BQL2, offsets_BQNLP2, logits_BQNLP
        )
    _library.refuse_tangents(name, value_BSND, reference_BQL2, offsets_BQNLP2, logits_BQNLP)
    out: Tensor = _forward(
        value_BSND, _flat(name, level_shapes), offsets_BQNLP2, logits_BQNLP, reference_BQL2
    )
    return out


def gradients(
    grad_out_BQE: Tensor,
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    locations_BQNLP2: Tensor,
    weights_BQNLP: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights of `ms_deform_attn`, computed at once, outside of
    autograd."""
    if _library.has_kernel("ms_deform_attn", value_BSND.device):
        sizes = _flat("ms_deform_attn", level_shapes)
        needed = [True, True, True, False]
        with torch.no_grad():
            found = _backward(
                grad_out_BQE, value_BSND, sizes, locations_BQNLP2, weights_BQNLP, None, needed
            )
        return found[0], found[1], found[2]
    leaves = [
        tensor.detach().requires_grad_() for tensor in (value_BSND, locations_BQNLP2, weights_BQNLP)
    ]
    with torch.enable_grad():
        out = reference.ms_deform_attn(leaves[0], level_shapes, *leaves[1:])
    value, locations, weights = torch.autograd.grad(out, leaves, grad_out_BQE)
    return value, locations, weights


def _flat(name: str, level_shapes: Sequence[tuple[int, int]]) -> list[int]:
    _check.pairs(name, "level_shapes", level_shapes)
    return [size for level in level_shapes for size in level]


# One operator serves both forms: with `reference`, `locations` are offsets and `weights` are
# logits.


def _forward_kernel(
    value: Tensor,
    level_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
) -> Tensor:
    out = _empty_out(value, locations)
    _library.core.ms_deform_attn_forward(
        out,
        value,
        level_shapes,
        locations,
        weights,
        torch.get_num_threads(),
        reference,
        _library.stream(value),
    )
    return out


def _forward_fake(
    value: Tensor,
    level_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
) -> Tensor:
    check(
        value,
        list(zip(level_shapes[::2], level_shapes[1::2], strict=True)),
        locations,
        weights,
        reference,
    )
    return _empty_out(value, locations)


def _empty_out(value: Tensor, locations: Tensor) -> Tensor:
    if value.dim() != 4 or locations.dim() != 6:
        return value.new_empty(0)  # the kernel's checks say what is wrong
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _backward_kernel(
    grad_out: Tensor,
    value: Tensor,
    level_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    gradients = _backward_fake(grad_out, value, level_shapes, locations, weights, reference, needed)
    outputs = [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]
    _library.core.ms_deform_attn_backward(
        *outputs[:3],
        grad_out,
        value,
        level_shapes,
        locations,
        weights,
        torch.get_num_threads(),
        reference,
        outputs[3],
        torch.are_deterministic_algorithms_enabled(),
        _library.workspace(value),
        _library.stream(value),
    )
    return gradients


def _backward_fake(
    grad_out: Tensor,
    value: Tensor,
    level_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    """A gradient that is not needed is an empty tensor."""

    def empty(tensor: Tensor | None, need: bool) -> Tensor:
        if tensor is not None and need:
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return (value if tensor is None else tensor).new_empty(0)

    return tuple(map(empty, (value, locations, weights, reference), needed))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_shapes, locations, weights, reference = inputs
    ctx.save_for_backward(value, locations, weights, reference)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights, reference = ctx.saved_tensors
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
    gradients = _backward(grad_out, value, ctx.level_shapes, locations, weights, reference, needed)
    value, locations, weights, reference = (
        gradient if need else None for gradient, need in zip(gradients, needed, strict=True)
    )
    return value, None, locations, weights, reference


_forward = _library.define(
    "ms_deform_attn",
    "(Tensor value, SymInt[] level_shapes, Tensor locations, Tensor weights, Tensor? reference) -> "
    "Tensor",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_backward = _library.define(
    "ms_deform_attn_backward",
    "(Tensor grad_out, Tensor value, SymInt[] level_shapes, Tensor locations, Tensor weights, "
    "Tensor? reference,"
    " bool[4] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    kernels={"cpu": _backward_kernel, "cuda": _backward_kernel},
    fake=_backward_fake,
)
