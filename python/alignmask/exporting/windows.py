"""Swin's window attention in a form that `torch.export` follows for any image size.

timm cuts a map into windows by views. A tracer that keeps sizes as symbols then has to reason about
strides of views of padded, rolled maps; this takes minutes, and ends in guards that exclude small
images. Here tokens are gathered into their windows, and back, by computed indices: the same
numbers.

B images, H x W tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from alignmask.model.backbone import SwinBlock

HIDDEN = -100.0
"""What timm adds to the attention logits of tokens that the cyclic shift brought together."""


class GatheringBlock(SwinBlock):
    """A `SwinBlock` that gathers tokens into their windows by index."""

    def _attn(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        (height, width), (down, right) = self.window_size, self.shift_size
        rows, columns = (H + height - 1) // height, (W + width - 1) // width
        area, windows = height * width, rows * columns

        # Where each place of each window lies in the map that is padded, then rolled; and in the
        # map as it was.
        place = torch.arange(windows * area, device=x_BHWC.device)
        window, inside = place // area, place % area
        y = window // columns * height + inside // width
        x = _modulo(window, columns) * width + inside % width
        y_before, x_before = _modulo(y + down, rows * height), _modulo(x + right, columns * width)
        source = _modulo(y_before, H) * W + _modulo(x_before, W)
        real = ((y_before < H) & (x_before < W)).to(x_BHWC.dtype)
        tokens = x_BHWC.flatten(1, 2).index_select(1, source) * real[:, None]
        mask = None
        if down or right:
            region = 3 * _region(y, rows * height, height, down) + _region(
                x, columns * width, width, right
            )
            region = region.view(windows, area)
            mask = torch.where(region[:, None] == region[:, :, None], 0.0, HIDDEN).to(x_BHWC.dtype)
        tokens = self.attn(tokens.view(B * windows, area, C), mask=mask).view(B, windows * area, C)

        token = torch.arange(H * W, device=x_BHWC.device)
        # Rolled back: -down and -right, in a form that is never negative.
        y = _modulo(token // W + down * (rows * height - 1), rows * height)
        x = _modulo(_modulo(token, W) + right * (columns * width - 1), columns * width)
        place = (y // height * columns + x // width) * area + y % height * width + x % width
        return tokens.index_select(1, place).view(B, H, W, C)


def _modulo(i: Tensor, n: int) -> Tensor:
    """i % n for i >= 0. (The operator itself has no ONNX form for an n that depends on the
    image.)"""
    return i - i // n * n


def _region(i: Tensor, size: int, window: int, shift: int) -> Tensor:
    """0, 1, 2: before the last window; what stays together in it; what the shift brought in from
    the other side."""
    return (i >= size - window).long() + (i >= size - shift).long()


class EvenMerging(PatchMerging):
    """timm's merging of two by two tokens, of maps whose sides are even, as they are here: all
    sides are multiples of 32 at the start.

    timm pads a side by itself modulo 2. A tracer carries that through all later sizes.
    """

    def forward(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        pairs = x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        merged: Tensor = self.reduction(self.norm(pairs))
        return merged


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    SwinBlock: GatheringBlock,
    PatchMerging: EvenMerging,
}


@contextmanager
def exportable_windows(model: nn.Module) -> Iterator[None]:
    """Inside, the Swin layers in `model` have the forms that can be followed, and the tracer does
    not assume that a size differs from 1."""
    layers = [(module, type(module)) for module in model.modules() if type(module) in FORMS]
    if not layers:
        yield
        return
    for module, kind in layers:
        module.__class__ = FORMS[kind]
    try:
        with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield
    finally:
        for module, kind in layers:
            module.__class__ = kind
