"""Multiply-adds against numbers that papers print, and against counting by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from alignmask import recipes
from alignmask.config import BackboneConfig, ModelConfig
from alignmask.model.flops import Flops, count_flops, count_parameters
from tests import tiny


@cache
def flops(recipe: str, height: int = 800, width: int = 1216, aligned: int = 0) -> Flops:
    return count_flops(recipes.RECIPES[recipe]().model, height, width, aligned)


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [("r50_50ep", 44), ("mask2former_r50_50ep", 44), ("swin_s_50ep", 69), ("swin_b_50ep", 107)],
)
def test_parameters(recipe: str, millions: float) -> None:
    """Table 1 (Mask2Former's paper for the Swins)."""
    assert count_parameters(recipes.RECIPES[recipe]().model) / 1e6 == pytest.approx(
        millions, abs=0.5
    )


def test_parameters_of_a_real_model() -> None:
    assert count_parameters(tiny.model_config()) == sum(
        p.numel() for p in tiny.model().parameters()
    )


@pytest.mark.parametrize(
    ("backbone", "gmacs"),
    [("resnet50.tv_in1k", 4.1), ("swin_small_patch4_window7_224.ms_in1k", 8.7)],
)
def test_backbones_at_224(backbone: str, gmacs: float) -> None:
    """What their papers print."""
    found = count_flops(ModelConfig(backbone=BackboneConfig(backbone)), 224, 224)
    assert found.backbone == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "table_1"),
    [("mask2former_r50_50ep", 226), ("swin_s_50ep", 313), ("swin_b_50ep", 466)],
)
def test_totals_are_near_table_1(recipe: str, table_1: float) -> None:
    """Mask2Former's rows, plain form. Table 1 averages over COCO's photos, most of which are 800 x
    1066: so do we."""
    found = flops(recipe, 800, 1088)
    assert found.total + found.plain_masks == pytest.approx(table_1, rel=0.05)


def test_aligned_queries_cost_what_table_1_says() -> None:
    """+20 in every row, in the plain form; without the full-size masks of nine outputs it is less
    than half of that."""
    without, with_ = flops("r50_50ep"), flops("r50_50ep", aligned=100)
    assert with_.total + with_.plain_masks - without.total - without.plain_masks == pytest.approx(
        20, rel=0.05
    )
    assert with_.total - without.total < 9
    assert (with_.backbone, with_.pixel_decoder) == (without.backbone, without.pixel_decoder)


def test_mask_logits_by_hand() -> None:
    """100 queries x 256 channels x pixels: the last output at 200 x 304; nine others at full size
    or at their level's."""
    found = flops("r50_50ep")
    full = 100 * 256 * 200 * 304 / 1e9
    coarse = 3 * 100 * 256 * (25 * 38 + 50 * 76 + 100 * 152) / 1e9
    assert found.masks == pytest.approx(full)
    assert found.plain_masks == pytest.approx(9 * full - coarse)
    assert found.total == pytest.approx(
        found.backbone + found.pixel_decoder + found.query_decoder + full
    )


def test_a_decoder_layer_by_hand() -> None:
    """The difference that a layer more makes: attention, feed-forward, heads, coarse mask
    logits."""
    config = tiny.model_config(aligned_queries=None)
    layers = [
        count_flops(
            replace(config, query_decoder=replace(config.query_decoder, layers=n)), 64, 96
        ).query_decoder
        for n in (0, 1)
    ]
    queries, width, tokens, classes = 6, 32, 2 * 3, 4
    cross = 2 * queries * width**2 + 2 * tokens * width**2 + 2 * queries * tokens * width
    self_attention = 4 * queries * width**2 + 2 * queries**2 * width
    ffn = 2 * queries * width * 32
    heads = queries * width * classes + 3 * queries * width**2
    assert (layers[1] - layers[0]) * 1e9 == pytest.approx(
        cross + self_attention + ffn + heads + queries * width * tokens
    )


@pytest.mark.parametrize("count", [1, 7])
def test_it_grows_with_the_image_and_the_queries(count: int) -> None:
    config = tiny.model_config()
    small, large = count_flops(config, 64, 64, count), count_flops(config, 128, 128, count)
    assert large.backbone == pytest.approx(4 * small.backbone)
    assert large.masks == pytest.approx(4 * small.masks)
    assert small.masks == pytest.approx((6 + count) / 6 * count_flops(config, 64, 64).masks)


def test_it_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe with pretrained weights that are not there."""
    config = tiny.model_config(backbone=BackboneConfig("resnet10t", pretrained="/nowhere.pth"))
    assert count_flops(config, 64, 64).total > 0
