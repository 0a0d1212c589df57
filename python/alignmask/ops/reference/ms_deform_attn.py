"""Multi-scale deformable attention through `grid_sample`.

Shapes: B images, S tokens of all levels, N heads, D channels per head, Q queries, L levels, P
points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision


def check(
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None = None,
) -> None:
    """Raise TypeError or ValueError unless the arguments obey the contract of
    `alignmask.ops.ms_deform_attn`.

    With `reference`: of `ms_deform_attn_from_offsets`; `locations` are its offsets then, and
    `weights` its logits.
    """
    points: dict[str, tuple[Tensor, str]]
    if reference is None:
        op, counted = "ms_deform_attn", "locations"
        points = {"locations": (locations, "BQNLP2"), "weights": (weights, "BQNLP")}
    else:
        op, counted = "ms_deform_attn_from_offsets", "offsets"
        points = {
            "reference": (reference, "BQL2"),
            "offsets": (locations, "BQNLP2"),
            "logits": (weights, "BQNLP"),
        }
    sizes = _check.bind(
        op,
        value=(value_BSND, "BSND", _check.FLOATS),
        **{name: (tensor, letters, _check.FLOATS) for name, (tensor, letters) in points.items()},
    )
    allowed = {value_BSND.dtype, _check.compute_dtype(value_BSND.dtype)}
    for name, (tensor, _) in points.items():
        if tensor.dtype not in allowed:
            raise TypeError(
                f"{op}: {name} is {tensor.dtype}, but with value {value_BSND.dtype} it must be one "
                f"of {allowed}"
            )
    _check.levels(op, level_shapes, tokens=sizes["S"], count=sizes["L"], counted=counted)


@in_full_precision
def ms_deform_attn(
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    locations_BQNLP2: Tensor,
    weights_BQNLP: Tensor,
) -> Tensor:
    """See `alignmask.ops.ms_deform_attn`."""
    check(value_BSND, level_shapes, locations_BQNLP2, weights_BQNLP)
    B, _, N, D = value_BSND.shape
    _, Q, _, L, P, _ = locations_BQNLP2.shape
    dtype = _check.compute_dtype(value_BSND.dtype)
    out_BNDQ = value_BSND.new_zeros(B, N, D, Q, dtype=dtype)
    if 0 in (B, N, D, Q, P) or not any(h * w for h, w in level_shapes):
        # Nothing is sampled, but the output depends on every argument, as it does otherwise.
        none = sum(
            tensor[:0].sum().to(dtype) for tensor in (value_BSND, locations_BQNLP2, weights_BQNLP)
        )
        return (out_BNDQ.reshape(B, Q, N * D) + none).to(value_BSND.dtype)
    # A point one image away samples only zeros, as does any point further out: clamping keeps
    # infinity out of the arithmetic.
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
        sampled = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        out_BNDQ = out_BNDQ + torch.einsum(
            "bndqp,bnqp->bndq", sampled.view(B, N, D, Q, P), weights_BNQP
        )
    return out_BNDQ.permute(0, 3, 1, 2).reshape(B, Q, N * D).to(value_BSND.dtype)


def ms_deform_attn_from_offsets(
    value_BSND: Tensor,
    level_shapes: Sequence[tuple[int, int]],
    reference_BQL2: Tensor,
    offsets_BQNLP2: Tensor,
    logits_BQNLP: Tensor,
) -> Tensor:
    """See `alignmask.ops.ms_deform_attn_from_offsets`."""
    check(value_BSND, level_shapes, offsets_BQNLP2, logits_BQNLP, reference_BQL2)
    dtype = _check.compute_dtype(value_BSND.dtype)
    reference_BQ1L12 = reference_BQL2.to(dtype)[:, :, None, :, None]
    # Nothing is sampled from an empty level.
    sizes = [(max(w, 1), max(h, 1)) for h, w in level_shapes]
    size_L12 = torch.tensor(sizes, dtype=dtype, device=value_BSND.device).view(-1, 1, 2)
    weights_BQNLP = logits_BQNLP.to(dtype).flatten(-2).softmax(-1).view(logits_BQNLP.shape)
    return ms_deform_attn(
        value_BSND,
        level_shapes,
        reference_BQ1L12 + offsets_BQNLP2.to(dtype) / size_L12,
        weights_BQNLP,
    )
