"""Attention masks that tell an aligned query where to look: the mask of its instance, with noise
(MP-Former: Zhang et al., CVPR 2023, arXiv 2303.07336).

B images, A slots per image, G instances of the whole batch, H x W a mask's size, h x w a level's,
S = h * w tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def noised_masks(
    masks_GHW: Tensor,
    instance_BA: Tensor,
    sizes: Sequence[Sequence[int]],
    layers: int,
    noise: float,
) -> tuple[Tensor, ...]:
    """-> for each of `layers` decoder layers, [B, A, S], bool: where the queries attend.

    The layers attend to levels of the given sizes (h, w) in turn. A slot without an instance, -1 in
    instance_BA, attends to everything.
    """
    finest_Ghw = cells_of(masks_GHW, *max(sizes, key=tuple))
    levels = [_of_slots(cells_of(finest_Ghw, h, w), instance_BA) for h, w in sizes]
    return tuple(with_noise(levels[layer % len(levels)], noise) for layer in range(layers))


def check_noise(noise: float | None) -> None:
    """Raises ValueError unless it is a share, or None."""
    if noise is not None and not 0 <= noise <= 1:
        raise ValueError(
            f"model.aligned_queries.mask_noise: expected a share from 0 to 1, or None, got {noise}"
        )


def cells_of(masks_GHW: Tensor, h: int, w: int) -> Tensor:
    """-> [G, h, w]: the cells of a level in which a mask has a pixel."""
    height, width = masks_GHW.shape[1:]
    rows, columns = -(-height // h), -(-width // w)
    padded_GHW = F.pad(masks_GHW, (0, columns * w - width, 0, rows * h - height))
    # On a CPU, the greatest of bytes takes a quarter of the time of `any`.
    cells_GhW = padded_GHW.view(torch.uint8).unflatten(1, (h, rows)).amax(2)
    return cells_GhW.unflatten(2, (w, columns)).amax(3).bool()


def _of_slots(cells_Ghw: Tensor, instance_BA: Tensor) -> Tensor:
    """-> [B, A, S]: the mask of the instance in each slot. The last row, which -1 reads, is empty:
    with it, padding needs no instance to be there."""
    nothing_1S = cells_Ghw.new_zeros(1, cells_Ghw.shape[1] * cells_Ghw.shape[2])
    return torch.cat((cells_Ghw.flatten(1), nothing_1S))[instance_BA]


def with_noise(masks_BAS: Tensor, noise: float) -> Tensor:
    """Turn over as many cells as `noise` times those of the mask, on average, wherever they lie. A
    mask that is empty then is everything, since attention needs a key."""
    share_BA1 = masks_BAS.float().mean(2, keepdim=True) * noise
    noised_BAS = masks_BAS ^ (torch.rand(masks_BAS.shape, device=masks_BAS.device) < share_BA1)
    return noised_BAS | ~noised_BAS.any(2, keepdim=True)
