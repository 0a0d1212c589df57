"""Multi-scale deformable attention through `grid_sample`.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision


def check(value_BSND: Tensor, level_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    """Raise TypeError or ValueError unless the arguments obey the contract of `alignmask.ops.ms_deform_attn`."""
    op = "ms_deform_attn"
    sizes = _check.bind(
        op,
        value=(value_BSND, "BSND", _check.FLOATS),
        locations=(locations, "BQNLP2", _check.FLOATS),
        weights=(weights, "BQNLP", _check.FLOATS),
    )
    allowed = {value_BSND.dtype, _check.compute_dtype(value_BSND.dtype)}
    for name, tensor in (("locations", locations), ("weights", weights)):
        if tensor.dtype not in allowed:
            raise TypeError(
                f"{op}: {name} is {tensor.dtype}, but with value {value_BSND.dtype} it must be one of {allowed}"
            )
    _check.levels(op, level_shapes, tokens=sizes["S"], count=sizes["L"])


@in_full_precision
def ms_deform_attn(
    value_BSND: Tensor, level_shapes: Sequence[tuple[int, int]], locations_BQNLP2: Tensor, weights_BQNLP: Tensor
) -> Tensor:
    """See `alignmask.ops.ms_deform_attn`."""
    check(value_BSND, level_shapes, locations_BQNLP2, weights_BQNLP)
    B, _, N, D = value_BSND.shape
    _, Q, _, L, P, _ = locations_BQNLP2.shape
    dtype = _check.compute_dtype(value_BSND.dtype)
    out_BNDQ = value_BSND.new_zeros(B, N, D, Q, dtype=dtype)
    if 0 in (B, N, D, Q, P) or not any(h * w for h, w in level_shapes):
        # Nothing is sampled, but the output depends on every argument, as it does otherwise.
        none = sum(tensor[:0].sum().to(dtype) for tensor in (value_BSND, locations_BQNLP2, weights_BQNLP))
        return (out_BNDQ.reshape(B, Q, N * D) + none).to(value_BSND.dtype)
    # A point one image away samples only zeros, as does any point further out: clamping keeps infinity out of the arithmetic.
    grid_BQNLP2 = 2 * locations_BQNLP2.to(dtype).clamp(-1, 2) - 1
    start = 0
    for level, (h, w) in enumerate(level_shapes):
        if h * w == 0:
            continue
        tokens_BTND = value_BSND[:, start : start + h * w].to(dtype)
        start += h * w
        weights_BNQP = weights_BQNLP[:, :, :, level].to(dtype).transpose(1, 2)
        maps = tokens_BTND.permute(0, 2, 3, 1).reshape(B * N, D, h, w)
        grid = grid_BQNLP2[:, :, :, level].transpose(1, 2).reshape(B * N, Q, P, 2)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out_BNDQ = out_BNDQ + torch.einsum("bndqp,bnqp->bndq", sampled.view(B, N, D, Q, P), weights_BNQP)
    return out_BNDQ.permute(0, 3, 1, 2).reshape(B, Q, N * D).to(value_BSND.dtype)
