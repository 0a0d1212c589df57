"""What else computes ms_deform_attn on a CPU: the best form in plain torch, and a C++ extension from PyPI if it is installed.

Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Levels = Sequence[tuple[int, int]]


def embedding_bag(value_BSND: Tensor, level_shapes: Levels, locations_BQNLP2: Tensor, weights_BQNLP: Tensor) -> Tensor:
    """One bag per (image, query, head): the four tokens around each of its points, with their bilinear weights.

    The rows of the table are the value tensor's own, so nothing is copied. Taps outside a level get weight 0.
    """
    B, S, N, D = value_BSND.shape
    _, Q, _, L, P, _ = locations_BQNLP2.shape
    device = value_BSND.device
    height_L, width_L = torch.tensor(level_shapes, device=device).unbind(1)
    tokens_L = height_L * width_L
    start_L1 = (tokens_L.cumsum(0) - tokens_L)[:, None]
    size_L12 = torch.stack((width_L, height_L), 1)[:, None]
    pixel = torch.addcmul(locations_BQNLP2.new_tensor(-0.5), locations_BQNLP2, size_L12.to(locations_BQNLP2.dtype))
    low = pixel.detach().floor()
    high_part = pixel - low
    row_N = torch.arange(N, device=device)[:, None, None]
    row_B = torch.arange(B, device=device).view(B, 1, 1, 1, 1) * S
    indices, factors = [], []
    for dy in (0, 1):
        y = low[..., 1].long() + dy
        part_y = high_part[..., 1] if dy else 1 - high_part[..., 1]
        for dx in (0, 1):
            x = low[..., 0].long() + dx
            part_x = high_part[..., 0] if dx else 1 - high_part[..., 0]
            inside = (x >= 0) & (x < width_L[:, None]) & (y >= 0) & (y < height_L[:, None])
            token = torch.where(inside, y * width_L[:, None] + x, 0) + start_L1 + row_B
            indices.append(token * N + row_N)
            factors.append(torch.where(inside, part_x * part_y * weights_BQNLP, 0))
    bags = F.embedding_bag(
        torch.stack(indices, -1).view(B * Q * N, 4 * L * P),
        value_BSND.reshape(B * S * N, D),
        per_sample_weights=torch.stack(factors, -1).view(B * Q * N, 4 * L * P),
        mode="sum",
    )
    return bags.view(B, Q, N * D)


try:
    from torch_ms_deform_attn import ms_deform_attn as _extension
except ImportError:
    _extension = None


def torch_ms_deform_attn(
    value_BSND: Tensor, level_shapes: Levels, locations_BQNLP2: Tensor, weights_BQNLP: Tensor
) -> Tensor:
    """`pip install --no-build-isolation torch-ms-deform-attn==0.1.1`: C++, vectorised by the compiler, ATen's threads."""
    shapes = torch.tensor(level_shapes)
    tokens = shapes.prod(1)
    return _extension(value_BSND, shapes, tokens.cumsum(0) - tokens, locations_BQNLP2, weights_BQNLP)


PEERS = {"embedding_bag": embedding_bag} | ({"torch-ms-deform-attn": torch_ms_deform_attn} if _extension else {})
