"""The pixel decoder against a plain form, in a shape of which no number is a default or equals
another one.

S tokens of all levels, E channels, D channels of a head, h x w a map's size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask import ops
from alignmask.config import PixelDecoderConfig
from alignmask.model import layers
from alignmask.model.layers import by_parts, sine_position
from alignmask.model.pixel_decoder import EncoderLayer, MSDeformAttn, PixelDecoder
from tests import tiny
from tests.covers import covers
from tests.model import peers

CONFIG = PixelDecoderConfig(width=96, layers=2, heads=4, points=3, ffn_width=40)
CHANNELS = [8, 12, 16, 20]
SHAPES = [(2, 3), (4, 6), (8, 12)]  # strides 32, 16, 8


def plain_attention(attention: MSDeformAttn, x_SE: Tensor, position_SE: Tensor) -> Tensor:
    """One image, through grid_sample: 4 heads of 24 channels, 3 levels, 3 points."""
    heads, levels, points = 4, 3, 3
    query_SE = x_SE + position_SE
    offsets = (query_SE @ attention.offsets.weight.T + attention.offsets.bias).view(
        -1, heads, levels, points, 2
    )
    weights = (query_SE @ attention.weights.weight.T + attention.weights.bias).view(
        -1, heads, levels * points
    )
    weights = weights.softmax(2).view(-1, heads, levels, points)
    value_SE = x_SE @ attention.value.weight.T + attention.value.bias
    centres = [
        ((x + 0.5) / w, (y + 0.5) / h) for h, w in SHAPES for y in range(h) for x in range(w)
    ]
    centre_S2 = torch.tensor(centres, dtype=x_SE.dtype)
    found = torch.zeros(len(x_SE), heads, 24, dtype=x_SE.dtype)
    for level, ((h, w), tokens) in enumerate(
        zip(SHAPES, value_SE.split([h * w for h, w in SHAPES]), strict=True)
    ):
        for head in range(heads):
            map_Dhw = tokens[:, 24 * head : 24 * (head + 1)].T.unflatten(1, (h, w))
            for point in range(points):
                at_S2 = centre_S2 + offsets[:, head, level, point] / torch.tensor([w, h])
                grid = (2 * at_S2 - 1)[None, None]
                sampled_DS = F.grid_sample(
                    map_Dhw[None], grid, padding_mode="zeros", align_corners=False
                )[0, :, 0]
                found[:, head] += weights[:, head, level, point, None] * sampled_DS.T
    return found.flatten(1) @ attention.output.weight.T + attention.output.bias


def plain_layer(layer: EncoderLayer, x_SE: Tensor, position_SE: Tensor) -> Tensor:
    x_SE = norm(layer.attention_norm, x_SE + plain_attention(layer.attention, x_SE, position_SE))
    inner = (x_SE @ layer.ffn[0].weight.T + layer.ffn[0].bias).clamp(min=0)
    assert inner.shape[1] == 40
    return norm(layer.ffn_norm, x_SE + inner @ layer.ffn[2].weight.T + layer.ffn[2].bias)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def group_norm(layer: nn.GroupNorm, x_Ehw: Tensor) -> Tensor:
    """32 groups of 3 channels."""
    return F.group_norm(x_Ehw[None], 32, layer.weight, layer.bias)[0]


def waves_16_24() -> Tensor:
    """What a map of 16 x 24 pixels is told about its places, one pixel at a time."""
    waves = np.empty((20, 16, 24), np.float32)
    for y, x in np.ndindex(16, 24):
        down, right = (y + 0.5) / 16, (x + 0.5) / 24
        column = []
        for part in (down, right):
            for wave in (math.sin, math.cos):
                column += [wave(2 * math.pi * periods * part) for periods in (0.5, 1, 2, 4, 8)]
        waves[:, y, x] = column
    return torch.from_numpy(waves)


@covers("model.pixel_decoder.width", "model.pixel_decoder.layers", "model.pixel_decoder.heads")
@covers("model.pixel_decoder.points", "model.pixel_decoder.ffn_width")
@covers("model.pixel_decoder.place")
@pytest.mark.parametrize("place", [False, True])
@torch.no_grad()
def test_levels_and_pixel_embedding_equal_the_plain_form(place: bool) -> None:
    decoder = PixelDecoder(replace(CONFIG, place=place), CHANNELS)
    peers.scatter(decoder)
    for layer in decoder.layers:
        layer.attention.offsets.bias.normal_(std=2.0)  # points of all heads elsewhere, some outside
    maps = [
        torch.randn(2, c, 16 * 4 // s, 24 * 4 // s)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]
    features = decoder(maps)
    assert len(decoder.layers) == 2
    for b in range(2):
        tokens, positions = [], []
        for i, (h, w) in enumerate(SHAPES):
            convolution, group = decoder.project[i]
            map_Chw = maps[3 - i][b]
            projected = torch.einsum("ec,chw->ehw", convolution.weight[:, :, 0, 0], map_Chw)
            projected = projected + convolution.bias[:, None, None]
            tokens.append(group_norm(group, projected).flatten(1).T)
            positions.append(sine_position(h, w, 96) + decoder.level_embedding[i])
        x_SE, position_SE = torch.cat(tokens), torch.cat(positions)
        for layer in decoder.layers:
            x_SE = plain_layer(layer, x_SE, position_SE)
        levels = [
            part.T.unflatten(1, size)
            for part, size in zip(x_SE.split([h * w for h, w in SHAPES]), SHAPES, strict=True)
        ]
        for found, expected in zip(features.levels, levels, strict=True):
            torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-5)
        up_Ehw = F.interpolate(
            levels[2][None], size=(16, 24), mode="bilinear", align_corners=False
        )[0]
        lateral = group_norm(decoder.lateral[1], F.conv2d(maps[0][b], decoder.lateral[0].weight))
        detailed = lateral + up_Ehw
        if place:
            waves = torch.einsum("ec,chw->ehw", decoder.place.weight[:, :, 0, 0], waves_16_24())
            detailed = detailed + waves + decoder.place.bias[:, None, None]
        fused = F.conv2d(detailed[None], decoder.fuse[0].weight, padding=1)[0]
        fused = group_norm(decoder.fuse[1], fused).clamp(min=0)
        embedding = torch.einsum("ec,chw->ehw", decoder.embed.weight[:, :, 0, 0], fused)
        embedding = embedding + decoder.embed.bias[:, None, None]
        torch.testing.assert_close(features.embedding_BEHW[b], embedding, rtol=1e-4, atol=1e-5)


@covers("model.pixel_decoder.width", "model.pixel_decoder.layers", "model.pixel_decoder.heads")
@covers("model.pixel_decoder.points", "model.pixel_decoder.ffn_width")
def test_a_model_is_built_with_these_numbers() -> None:
    decoder = tiny.model(pixel_decoder=CONFIG).pixel_decoder
    assert len(decoder.layers) == 2
    for layer in decoder.layers:
        attention = layer.attention
        assert (attention.heads, attention.points, attention.levels) == (4, 3, 3)
        assert attention.offsets.weight.shape == (4 * 3 * 3 * 2, 96)
        assert attention.weights.weight.shape == (4 * 3 * 3, 96)
        assert layer.ffn[0].weight.shape == (40, 96)


def test_reference_points_stay_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 has 8 bits: pixels of a map 200 wide would share their centres."""
    seen = []
    original = ops.ms_deform_attn_from_offsets

    def spy(value: Tensor, shapes: Any, reference: Tensor, *others: Any) -> Tensor:
        seen.append(reference)
        return original(value, shapes, reference, *others)

    monkeypatch.setattr(ops, "ms_deform_attn_from_offsets", spy)
    model = tiny.model().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(tiny.batch())
    (reference_BSL2,) = seen
    assert reference_BSL2.dtype == torch.float32
    centres = torch.tensor([((x + 0.5) / 12, (y + 0.5) / 8) for y in range(8) for x in range(12)])
    for level in range(3):
        torch.testing.assert_close(reference_BSL2[1, -96:, level], centres, rtol=1e-6, atol=0)


@torch.no_grad()
def test_objects_that_look_alike_differ_by_their_place() -> None:
    """Of an image that repeats every 32 pixels, places 32 pixels apart look the same but for the
    borders."""
    maps = [torch.randn(1, c, 1, 1).expand(-1, -1, 256 // s, 256 // s) for c, s in zip(
        CHANNELS, (4, 8, 16, 32), strict=True
    )]  # fmt: skip
    for place in (False, True):
        torch.manual_seed(0)
        embedding_EHW = PixelDecoder(replace(CONFIG, place=place), CHANNELS)(maps).embedding_BEHW[0]
        difference = (embedding_EHW[:, 28, 28] - embedding_EHW[:, 36, 36]).norm()
        assert (difference > 0.1 * embedding_EHW[:, 28, 28].norm()) == place


def test_a_layer_in_parts_is_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, tokens go through the feed-forward network part by part: of 126 tokens 5
    and 1 over."""
    layer = EncoderLayer(CONFIG, 3)
    peers.scatter(layer)
    x_BSE, attended_BSE = torch.randn(2, 2, 126, 96).unbind()
    expected_BSE = layer._after_attention(x_BSE, attended_BSE).detach()
    parts: list[int] = []
    monkeypatch.setattr(layers, "ROWS", 5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    layer.ffn.register_forward_hook(lambda module, inputs, output: parts.append(output.shape[1]))
    with torch.no_grad():
        found_BSE = by_parts(layer._after_attention, x_BSE, attended_BSE)
    assert parts == [25] * 5 + [1]
    torch.testing.assert_close(found_BSE, expected_BSE)
    parts.clear()
    by_parts(layer._after_attention, x_BSE, attended_BSE).sum().backward()
    assert parts == [126]
