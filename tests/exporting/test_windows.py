"""Swin's windows by gathering: the model's numbers, and a program for any image size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim

from alignmask.config import BackboneConfig, PixelDecoderConfig, SwinConfig
from alignmask.exporting.export import Form, export_model
from alignmask.exporting.files import open_file
from alignmask.exporting.segmenter import Segmenter
from alignmask.exporting.windows import GatheringBlock, exportable_windows
from alignmask.model.backbone import Backbone, SwinBlock
from alignmask.model.pixel_decoder import PixelDecoder
from tests import tiny

WINDOW = 3


@given(st.integers(1, 3), st.integers(1, 10), st.integers(1, 10), st.integers(0, WINDOW - 1))
def test_the_block_is_the_models(batch: int, height: int, width: int, shift: int) -> None:
    """Maps smaller than a window, and smaller than the shift, among them."""
    torch.manual_seed(0)
    block: Any = SwinBlock(
        4,
        (14, 14),
        2,
        window_size=WINDOW,
        shift_size=shift,
        always_partition=True,
        dynamic_mask=True,
    )
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x_BHWC = torch.randn(batch, height, width, 4)
    with torch.no_grad():
        expected = block(x_BHWC)
        with exportable_windows(block):
            assert type(block) is GatheringBlock
            torch.testing.assert_close(block(x_BHWC), expected, rtol=1e-5, atol=1e-6)
    assert type(block) is SwinBlock


def test_blocks_are_given_back_after_an_error() -> None:
    block = torch.nn.Sequential(SwinBlock(4, (14, 14), 2))
    with pytest.raises(KeyError), exportable_windows(block):
        raise KeyError
    assert type(block[0]) is SwinBlock


class Maps(torch.nn.Module):
    """A small Swin with its pixel decoder."""

    def __init__(self) -> None:
        super().__init__()
        shape = SwinConfig(embed_dim=8, depths=(2, 1, 1, 1), heads=(1, 1, 1, 1), window=WINDOW)
        config = BackboneConfig("swin_tiny_patch4_window7_224", swin=shape, pretrained=False)
        self.backbone = Backbone(config)
        decoder = PixelDecoderConfig(width=32, layers=1, heads=4, points=2, ffn_width=32)
        self.pixel_decoder = PixelDecoder(decoder, self.backbone.channels)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = self.backbone(image)
        features = self.pixel_decoder(maps)
        return [*maps, *features.levels, features.embedding_BEHW]


def test_a_program_for_any_size() -> None:
    model = Maps().eval()
    dims = {0: Dim("batch"), 2: 32 * Dim("height", min=2), 3: 32 * Dim("width", min=2)}
    with torch.no_grad(), exportable_windows(model):
        program = torch.export.export(
            model, (torch.rand(2, 3, 128, 192),), dynamic_shapes=(dims,)
        ).module()
    for size in ((1, 3, 64, 64), (3, 3, 96, 320), (1, 3, 384, 64)):
        x = torch.rand(size) * 255
        with torch.no_grad():
            for found, expected in zip(program(x), model(x), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_whole_swin_model(format: Any, tmp_path: Any) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    backbone = BackboneConfig("swin_tiny_patch4_window7_224.ms_in22k", pretrained=False)
    model = tiny.model(backbone=backbone).eval()
    path = tmp_path / ("model.pt2" if format == "torch" else "model.onnx")
    assert export_model(model, path, Form(format)).parity is not None
    image = torch.randint(0, 256, (1, 3, 224, 448)).to(torch.uint8)
    size = torch.tensor([[224, 440]])
    with torch.no_grad():
        expected = Segmenter(model)(image, size)
    torch.testing.assert_close(open_file(path)(image, size)[0], expected[0], rtol=0, atol=1e-4)
