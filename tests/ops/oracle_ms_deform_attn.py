"""Multi-scale deformable attention once more, from the docstrings alone: loops over scalars in
float64, gradients by hand.

Compiled by numba (and cached), else as plain as possible: it knows neither torch's samplers nor the
shipped reference. Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]


@numba.njit(cache=True)
def _sample(
    tokens: Array,
    height: int,
    width: int,
    x: float,
    y: float,
    weight: float,
    gradient: Array,
    out: Array,
    grad: Array,
) -> tuple[float, float, float]:
    """Adds weight · sample of [h·w, D] tokens at the position (x, y) in pixels to out, its VJP to
    grad.

    Returns the derivatives of <gradient, out> in x, y and the weight.
    """
    if math.isnan(x) or math.isnan(y):
        out[:] = math.nan
        return math.nan, math.nan, math.nan
    in_x = in_y = in_weight = 0.0
    # Outside; floor() would not fit an integer.
    if math.isinf(x) or math.isinf(y) or abs(x) > 1e12 or abs(y) > 1e12:
        column, row = -9, -9
    else:
        column, row = math.floor(x), math.floor(y)
    sampled = np.zeros_like(out)
    for i in range(2):
        for j in range(2):
            r, c = row + i, column + j
            if not (0 <= r < height and 0 <= c < width):
                continue
            part_y, part_x = 1 - abs(y - r), 1 - abs(x - c)
            product = 0.0
            for d in range(len(out)):
                token = tokens[r * width + c, d]
                sampled[d] += part_y * part_x * token
                product += token * gradient[d]
                grad[r * width + c, d] += weight * part_y * part_x * gradient[d]
            in_x += weight * part_y * (2 * j - 1) * product
            in_y += weight * part_x * (2 * i - 1) * product
            in_weight += part_y * part_x * product
    for d in range(len(out)):
        out[d] += weight * sampled[d]
    return in_x, in_y, in_weight


@numba.njit(cache=True)
def _attend(
    value: Array, levels: Array, locations: Array, weights: Array, out: Array, gradient: Array,
    grad_value: Array, grad_locations: Array, grad_weights: Array,
) -> None:  # fmt: skip
    B, Q, N, L, P = weights.shape
    for b in range(B):
        for q in range(Q):
            for n in range(N):
                start = 0
                for level in range(L):
                    height, width = levels[level]
                    if height * width > 0:
                        end = start + height * width
                        for p in range(P):
                            at = (b, q, n, level, p)
                            x, y = locations[b, q, n, level, p]
                            in_x, in_y, in_weight = _sample(
                                value[b, start:end, n], height, width, x * width - 0.5, y * height - 0.5, weights[at],
                                gradient[b, q, n], out[b, q, n], grad_value[b, start:end, n],
                            )  # fmt: skip
                            grad_locations[b, q, n, level, p, 0] = in_x * width
                            grad_locations[b, q, n, level, p, 1] = in_y * height
                            grad_weights[at] = in_weight
                        start = end


def ms_deform_attn(
    value: Array,
    levels: Sequence[tuple[int, int]],
    locations: Array,
    weights: Array,
    grad_out: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """out and, for `grad_out` (ones by default), the gradients of value, locations and weights."""
    B, _, N, D = value.shape
    Q = locations.shape[1]
    out = np.zeros((B, Q, N, D))
    gradient = (
        np.ones(out.shape)
        if grad_out is None
        else np.ascontiguousarray(grad_out).reshape(out.shape)
    )
    gradients = np.zeros(value.shape), np.zeros(locations.shape), np.zeros(weights.shape)
    inputs = (np.ascontiguousarray(array, np.float64) for array in (locations, weights))
    _attend(
        np.ascontiguousarray(value),
        np.array(levels, np.int64).reshape(-1, 2),
        *inputs,
        out,
        gradient,
        *gradients,
    )
    return out.reshape(B, Q, N * D), *gradients


def ms_deform_attn_from_offsets(
    value: Array,
    levels: Sequence[tuple[int, int]],
    reference: Array,
    offsets: Array,
    logits: Array,
    grad_out: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """out and, for `grad_out` (ones by default), the gradients of value, reference, offsets and
    logits."""
    sizes = np.array([(max(w, 1), max(h, 1)) for h, w in levels], np.float64).reshape(-1, 1, 2)
    B, Q, N, L, P = logits.shape
    with np.errstate(invalid="ignore"):  # what is not finite
        locations = reference[:, :, None, :, None] + offsets / sizes
        flat = logits.reshape(B, Q, N, L * P)
        powers = np.exp(flat - flat.max(-1, keepdims=True, initial=-math.inf))
        weights = powers / powers.sum(-1, keepdims=True)
    weights = weights.reshape(logits.shape)
    out, grad_value, grad_locations, grad_weights = ms_deform_attn(
        value, levels, locations, weights, grad_out
    )
    with np.errstate(invalid="ignore"):
        mean = (weights * grad_weights).sum((3, 4), keepdims=True)
        grad_logits = weights * (grad_weights - mean)
    return out, grad_value, grad_locations.sum((2, 4)), grad_locations / sizes, grad_logits
