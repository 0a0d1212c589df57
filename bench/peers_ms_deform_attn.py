"""What else computes ms_deform_attn on a CPU: the best form in plain torch, and a C++ extension
from PyPI if it is installed.

Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Levels = Sequence[tuple[int, int]]
Attention = Callable[[Tensor, Levels, Tensor, Tensor], Tensor]


def embedding_bag(
    value_BSND: Tensor, level_shapes: Levels, locations_BQNLP2: Tensor, weights_BQNLP: Tensor
) -> Tensor:
    """One bag per (image, query, head): the four tokens around each of its points, with their
    bilinear weights.

    The rows of the table are the value tensor's own, so nothing of it is copied. Taps outside a
    level get weight 0.
    """
    B, S, N, D = value_BSND.shape
    _, Q, _, L, P, _ = locations_BQNLP2.shape
    height_L, width_L = torch.tensor(level_shapes, dtype=torch.int32).unbind(1)
    start_L = (height_L * width_L).cumsum(0, dtype=torch.int32) - height_L * width_L

    def axis(place: Tensor, size_L: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Lower and upper pixel, brought inside; their parts, 0 where they were outside. [B, Q, N,
        L, P] each."""
        position = torch.addcmul(place.new_tensor(-0.5), place, size_L[:, None].to(place.dtype))
        low = position.detach().floor()
        part = position - low
        lower = low.to(torch.int32)
        inside = [(pixel >= 0) & (pixel < size_L[:, None]) for pixel in (lower, lower + 1)]
        pixels = [
            torch.minimum(pixel.clamp(min=0), size_L[:, None] - 1).to(torch.int32)
            for pixel in (lower, lower + 1)
        ]
        return (pixels[0], pixels[1]), ((1 - part) * inside[0], part * inside[1])

    columns, parts_x = axis(locations_BQNLP2[..., 0], width_L)
    rows, parts_y = axis(locations_BQNLP2[..., 1], height_L)
    first_row = torch.arange(N, dtype=torch.int32)[:, None, None] + N * start_L[:, None]
    first_row = first_row + (torch.arange(B, dtype=torch.int32) * (S * N)).view(B, 1, 1, 1, 1)
    indices, factors = [], []
    for row, part_y in zip(rows, parts_y, strict=True):
        beginning, weighted = first_row + row * (N * width_L[:, None]), part_y * weights_BQNLP
        for column, part_x in zip(columns, parts_x, strict=True):
            indices.append(torch.add(beginning, column, alpha=N))
            factors.append(weighted * part_x)
    bags = F.embedding_bag(
        torch.stack(indices, 3).view(B * Q * N, 4 * L * P),
        value_BSND.reshape(B * S * N, D),
        per_sample_weights=torch.stack(factors, 3).view(B * Q * N, 4 * L * P),
        mode="sum",
    )
    return bags.view(B, Q, N * D)


PEERS: dict[str, Attention] = {"embedding_bag": embedding_bag}

try:
    from torch_ms_deform_attn import ms_deform_attn as _extension
except ImportError:
    print(
        "torch-ms-deform-attn is not installed: left out (pip install --no-build-isolation "
        "torch-ms-deform-attn)"
    )
else:

    def torch_ms_deform_attn(
        value_BSND: Tensor, level_shapes: Levels, locations_BQNLP2: Tensor, weights_BQNLP: Tensor
    ) -> Tensor:
        """C++ on ATen's threads, vectorised by the compiler."""
        shapes = torch.tensor(level_shapes)
        tokens = shapes.prod(1)
        return _extension(
            value_BSND, shapes, tokens.cumsum(0) - tokens, locations_BQNLP2, weights_BQNLP
        )

    PEERS["torch-ms-deform-attn"] = torch_ms_deform_attn
