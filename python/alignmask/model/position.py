"""Fixed sine position encoding of a feature map (as in DETR and Mask2Former)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """-> [height * width, channels]: the first half of the channels encodes y, the second x, sine and cosine interleaved."""
    if channels % 4:
        raise ValueError(f"channels = {channels}: sine positions need a multiple of 4")
    half = channels // 2
    index = torch.arange(half, device=device, dtype=torch.float32)
    period = 10_000 ** (2 * (index // 2) / half)

    def encode(size: int) -> Tensor:
        position = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        angle = position[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height)[:, None].expand(height, width, half)
    x = encode(width)[None].expand(height, width, half)
    return torch.cat((y, x), dim=2).flatten(0, 1)
