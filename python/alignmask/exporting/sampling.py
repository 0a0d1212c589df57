"""Deformable attention in operators that every ONNX runtime has: tokens are gathered by computed
indices.

`grid_sample` becomes ONNX's GridSample, which some runtimes lack and TensorRT has been seen to
compile wrongly in this place. Gathering gives the same numbers, as fast.

B images, S tokens of all levels, N heads, D channels of a head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from alignmask.model.pixel_decoder import MSDeformAttn, Shapes


class GatheringAttention(MSDeformAttn):
    """A `MSDeformAttn` that gathers the tokens around its points by index."""

    def attend(
        self,
        value_BSND: Tensor,
        shapes: Shapes,
        reference_BQL2: Tensor,
        offsets_BQNLP2: Tensor,
        logits_BQNLP: Tensor,
    ) -> Tensor:
        return attend_by_gathers(value_BSND, shapes, reference_BQL2, offsets_BQNLP2, logits_BQNLP)


def attend_by_gathers(
    value_BSND: Tensor,
    shapes: Shapes,
    reference_BQL2: Tensor,
    offsets_BQNLP2: Tensor,
    logits_BQNLP: Tensor,
) -> Tensor:
    """As `alignmask.ops.ms_deform_attn_from_offsets`, in float32.

    Each point lies between four tokens. All points read their first tokens, then their second ones,
    and so on: four gathers of rows of D channels, whatever the number of levels. Indices are int32,
    in half the time of int64: B * S * N must be less than 2^31.
    """
    B, S, N, D = value_BSND.shape
    _, Q, _, L, P, _ = offsets_BQNLP2.shape
    device, index = value_BSND.device, torch.int32
    size_L12 = torch.tensor([(w, h) for h, w in shapes], device=device).view(L, 1, 2)
    width_L1, last_L12 = size_L12[:, :, 0].to(index), (size_L12 - 1).float()
    areas = [h * w for h, w in shapes]
    start_L1 = torch.tensor([sum(areas[:level]) for level in range(L)], device=device).view(L, 1)

    # Where the points lie, in units of tokens. One that lies further out than a token reads zeros
    # alone, as do all that are still further out: clamping keeps infinity out of the arithmetic.
    size = size_L12.float()
    at_BQNLP2 = reference_BQL2.float()[:, :, None, :, None] * size + offsets_BQNLP2.float() - 0.5
    at_BQNLP2 = at_BQNLP2.clamp(min=-1).minimum(size)
    low = at_BQNLP2.floor()
    part = at_BQNLP2 - low
    # Of the tokens before and after it in each direction: the nearest that exists, and its share,
    # which is 0 if that is another one.
    tokens = [corner.clamp(min=0).minimum(last_L12) for corner in (low, low + 1)]
    shares = [(1 - part) * (tokens[0] == low), part * (tokens[1] == low + 1)]

    image_B1111 = torch.arange(B, device=device, dtype=index).view(B, 1, 1, 1, 1) * S
    head_N11 = torch.arange(N, device=device, dtype=index).view(N, 1, 1)
    first = image_B1111 + start_L1.to(index)
    rows = [(first + token[..., 1].to(index) * width_L1) * N + head_N11 for token in tokens]
    columns = [token[..., 0].to(index) * N for token in tokens]

    weights_BQNLP = logits_BQNLP.float().flatten(-2).softmax(-1).view(logits_BQNLP.shape)
    table = value_BSND.reshape(B * S * N, D)
    out_BQND = value_BSND.new_zeros((), dtype=torch.float32)
    for y in (0, 1):
        weights_of_y = weights_BQNLP * shares[y][..., 1]
        for x in (0, 1):
            found = table.index_select(0, (rows[y] + columns[x]).flatten()).float()
            weights = (weights_of_y * shares[x][..., 0]).view(B, Q, N, 1, L * P)
            out_BQND = out_BQND + (weights @ found.view(B, Q, N, L * P, D)).squeeze(3)
    return out_BQND.reshape(B, Q, N * D).to(value_BSND.dtype)


@contextmanager
def gathering_attention(model: nn.Module) -> Iterator[None]:
    """Inside, the deformable attention in `model` is a `GatheringAttention`."""
    layers = [module for module in model.modules() if type(module) is MSDeformAttn]
    for layer in layers:
        layer.__class__ = GatheringAttention
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = MSDeformAttn
