"""Layouts that only a GPU's libraries choose, seen without one: shapes and strides alone are computed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from alignmask.model.config import PixelDecoderConfig
from alignmask.model.pixel_decoder import PixelDecoder


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_pixel_embedding_has_its_channels_together(device: str) -> None:
    """The pooling kernel reads vectors of channels; on a GPU, GroupNorm's output has them apart."""
    config = dataclasses.replace(PixelDecoderConfig(), width=64, heads=2, layers=1, ffn_width=64)
    with FakeTensorMode(), torch.device(device):
        decoder = PixelDecoder(config, [8, 16, 32, 64])
        maps = [torch.randn(2, 8 << i, 32 >> i, 48 >> i) for i in range(4)]
        embedding_BEHW = decoder(maps).embedding_BEHW
    assert embedding_BEHW.is_contiguous(memory_format=torch.channels_last), embedding_BEHW.stride()
