"""Layers that several parts of the model share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether torch.export is at work. Older versions of torch cannot tell it from torch.compile."""


ROWS = 1024
"""Number of tokens whose features, widened by a feed-forward network, a processor's cache holds."""


def by_parts(function: Callable[..., Tensor], *tensors_BSE: Tensor) -> Tensor:
    """`function` of the tensors, for a function that treats every token by itself: without
    gradients on a CPU as many tokens at once as its caches hold. [B, S, E] -> [B, S, E]."""
    first = tensors_BSE[0]
    # In torch.compile and torch.export, too, which cannot ask for the number of threads.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or first.device.type != "cpu":
        return function(*tensors_BSE)
    rows = ROWS * torch.get_num_threads()
    if first.shape[1] <= rows:
        return function(*tensors_BSE)
    found_BSE = torch.empty_like(first)
    for start in range(0, first.shape[1], rows):
        part = slice(start, start + rows)
        found_BSE[:, part] = function(*(tensor[:, part] for tensor in tensors_BSE))
    return found_BSE


def sine_position(
    height: int, width: int, channels: int, device: torch.device | str = "cpu"
) -> Tensor:
    """-> [height * width, channels]: the first half of the channels encodes y, the second x, sine
    and cosine interleaved."""
    if channels % 4:
        raise ValueError(f"channels = {channels}: sine positions need a multiple of 4")
    half = channels // 2
    index = torch.arange(half, device=device, dtype=torch.float32)
    period = 10_000 ** (2 * (index // 2) / half)

    def encode(size: int) -> Tensor:
        position = (
            torch.arange(1, size + 1, device=device, dtype=torch.float32)
            / (size + 1e-6)
            * (2 * math.pi)
        )
        angle = position[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height)[:, None].expand(height, width, half)
    x = encode(width)[None].expand(height, width, half)
    return torch.cat((y, x), dim=2).flatten(0, 1)


class ReLU(nn.Module):
    """In place where there are no gradients. Where there are, autograd would copy all that follows:
    a linear layer returns a view of a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if torch.is_grad_enabled() else x.relu_()


PERIODS = (0.5, 1, 2, 4, 8)


def place_waves(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """-> [4 * len(PERIODS), height, width]: sine and cosine of the pixels' y and x, with so many
    periods in an image."""
    periods_P = torch.tensor(PERIODS, device=device)

    def encode(size: int) -> Tensor:
        centre = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
        angle_PS = 2 * math.pi * periods_P[:, None] * centre
        return torch.cat((angle_PS.sin(), angle_PS.cos()))

    y = encode(height)[:, :, None].expand(-1, height, width)
    x = encode(width)[:, None].expand(-1, height, width)
    return torch.cat((y, x))


def mlp(width_in: int, width_hidden: int, width_out: int, hidden_layers: int = 2) -> nn.Sequential:
    """A multi-layer perceptron with ReLU and `hidden_layers` hidden layers."""
    widths = [width_in] + [width_hidden] * hidden_layers
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], width_out))


def feed_forward(width: int, width_hidden: int) -> nn.Sequential:
    """The feed-forward network of a transformer layer, with ReLU; weights by Xavier's rule."""
    widen, narrow = nn.Linear(width, width_hidden), nn.Linear(width_hidden, width)
    for linear in (widen, narrow):
        nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(widen, ReLU(), narrow)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless the channels can be divided among the attention heads."""
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} attention heads")
