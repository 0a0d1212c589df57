"""Multi-scale deformable attention: public function.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from alignmask.ops import reference


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
    Arithmetic and accumulation are in float32 (float64 for float64). A NaN location gives NaN, an infinite one is outside.

    Returns:
        out_BQE, E = N·D, dtype of `value`. Differentiable in value, locations and weights; deterministic on the CPU.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape or device, or levels that do not add up to S. The message names the argument.
    """
    return reference.ms_deform_attn(value_BSND, level_shapes, locations_BQNLP2, weights_BQNLP)
