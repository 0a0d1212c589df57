"""Which parameters learn at which rate, and which of them decay."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from alignmask.config import BackboneConfig, SwinConfig, TrainConfig
from alignmask.model import AlignMask
from alignmask.model.stages import Stages
from alignmask.training.optimizer import build_optimizer, describe_rates
from tests import tiny
from tests.covers import covers

SWIN = BackboneConfig(
    "swin_tiny_patch4_window7_224",
    SwinConfig(32, (1, 1, 1, 1), (1, 1, 2, 2), 4),
    pretrained=False,
)
CONFIG = TrainConfig(learning_rate=0.5, backbone_multiplier=0.25, weight_decay=0.3)


def settings(
    model: nn.Module, config: TrainConfig = CONFIG
) -> dict[str, tuple[float, float, float]]:
    """Parameter -> rate, initial rate and decay."""
    optimizer = build_optimizer(model, config)  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["initial_lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))  # nobody twice
    return dict(found)


@covers("train.learning_rate", "train.backbone_multiplier", "train.weight_decay")
def test_every_kind_of_parameter() -> None:
    """Mask2Former's rule: the backbone at a tenth of the rate; no decay for norms, embeddings,
    position tables."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.convolution = nn.Linear(2, 2), nn.Conv2d(2, 2, 1)
            self.layer, self.group, self.batch = (
                nn.LayerNorm(2),
                nn.GroupNorm(1, 2),
                nn.BatchNorm2d(2),
            )
            for name in (
                "query", "query_position", "level_embedding", "aligned_position", "relative_position_bias_table",
                "absolute_pos_embed", "pos_embed", "gamma",
            ):  # fmt: skip
                self.register_parameter(name, nn.Parameter(torch.ones(2)))
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    model = nn.Module()
    model.backbone, model.backbones, model.decoder = Part(), Part(), nn.ModuleList([Part()])
    decaying = {"linear.weight", "linear.bias", "convolution.weight", "convolution.bias", "gamma"}
    expected = {
        f"{part}.{name}": (rate, rate, 0.3 if name in decaying else 0.0)
        for part, rate in (("backbone", 0.125), ("backbones", 0.5), ("decoder.0", 0.5))
        for name, parameter in Part().named_parameters()
        if parameter.requires_grad
    }
    assert settings(model) == expected


def test_groups_of_a_whole_model() -> None:
    """A Swin Transformer and everything that can be switched on: names by hand."""
    model = tiny.model(backbone=SWIN, aligned_queries=replace(tiny.ALIGNED, learned_position=True))
    found = settings(model)
    assert found.keys() == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert {rates[:2] for name, rates in found.items() if name.startswith("backbone.")} == {
        (0.125, 0.125)
    }
    assert {rates[:2] for name, rates in found.items() if not name.startswith("backbone.")} == {
        (0.5, 0.5)
    }
    kept = {name for name, (_, _, decay) in found.items() if decay == 0}
    assert {decay for name, (_, _, decay) in found.items() if name not in kept} == {0.3}
    assert {name for name in kept if "norm" not in name} == {
        "pixel_decoder.level_embedding", "query_decoder.query", "query_decoder.query_position",
        "query_decoder.level_embedding", "query_decoder.aligned_position",
        *(f"pixel_decoder.project.{i}.1.{kind}" for i in range(3) for kind in ("weight", "bias")),
        *(f"pixel_decoder.{part}.1.{kind}" for part in ("lateral", "fuse") for kind in ("weight", "bias")),
        *(f"backbone.body.layers_{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)),
    }  # fmt: skip
    assert all("norm" not in name for name in found.keys() - kept)


def test_adamws_own_numbers() -> None:
    """Mask2Former leaves them at PyTorch's defaults."""
    optimizer = build_optimizer(tiny.model(), CONFIG)
    assert len(optimizer.param_groups) == 3  # of the frozen norms of the backbone nothing is left
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"], group["maximize"]) == (
            (0.9, 0.999),
            1e-8,
            False,
            False,
        )


def rates(model: AlignMask, config: TrainConfig) -> dict[str, set[float]]:
    """The rates of each part of the backbone, by the first name, and of all other parts."""
    found: dict[str, set[float]] = {}
    for name, (rate, initial, _) in settings(model, config).items():
        assert rate == initial
        part = name.removeprefix("backbone.body.").split(".")[0]
        found.setdefault(part if name.startswith("backbone.body.") else "others", set()).add(rate)
        if name.startswith("backbone.norms."):
            found.setdefault("norms", set()).add(rate)
    return found


@covers("train.layer_decay")
def test_each_stage_learns_slower_than_the_next() -> None:
    """Half as fast: 0.5 x 0.25 in the last one. The stem belongs to the first."""
    config = replace(CONFIG, layer_decay=0.5)
    assert rates(tiny.model(), config) == {
        "conv1": {1 / 64}, "layer1": {1 / 64}, "layer2": {1 / 32}, "layer3": {1 / 16},
        "layer4": {1 / 8}, "others": {0.5},
    }  # fmt: skip
    lite0 = BackboneConfig("tf_efficientnet_lite0", pretrained=False, freeze_norm=False)
    model = tiny.model(backbone=lite0)
    found = {
        ".".join(name.split(".")[2:4]): rate
        for name, (rate, _, _) in settings(model, config).items()
        if name.startswith("backbone.body.")
    }
    assert found == {
        "conv_stem.weight": 1 / 64, "bn1.weight": 1 / 64, "bn1.bias": 1 / 64, "blocks.0": 1 / 64,
        "blocks.1": 1 / 64, "blocks.2": 1 / 32, "blocks.3": 1 / 16, "blocks.4": 1 / 16,
        "blocks.5": 1 / 8, "blocks.6": 1 / 8,
    }  # fmt: skip
    # The norms on a Swin Transformer's maps are new.
    assert rates(tiny.model(backbone=SWIN), config) == {
        "patch_embed": {1 / 64}, "layers_0": {1 / 64}, "layers_1": {1 / 32}, "layers_2": {1 / 16},
        "layers_3": {1 / 8}, "norms": {1 / 8}, "others": {0.5, 1 / 8},
    }  # fmt: skip


@covers("train.freeze_backbone")
def test_frozen_stages_are_not_trained() -> None:
    model = tiny.model()
    model.backbone.freeze(2)
    assert rates(model, CONFIG) == {"layer3": {0.125}, "layer4": {0.125}, "others": {0.5}}
    model.backbone.freeze(4)
    assert rates(model, CONFIG) == {"others": {0.5}}


def test_stages_that_are_one_layer_each() -> None:
    body = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    body.feature_info = SimpleNamespace(module_name=lambda: ["0", "1", "2", "3", "4"])
    stages = Stages(body, "toy")
    found = [stages.of_parameter(f"{n}.weight") for n in range(6)]
    assert found == [1, 1, 2, 3, 4, 4]  # what comes after the last map belongs to the last stage
    assert stages.up_to(2) == [body[0], body[1], body[2]]


def test_a_backbone_without_stages_of_its_own_is_refused() -> None:
    """HRNet computes all resolutions side by side."""
    model = tiny.model(backbone=BackboneConfig("hrnet_w18_small", pretrained=False))
    assert build_optimizer(model, CONFIG)
    model.backbone.freeze(0)
    with pytest.raises(ValueError, match="hrnet_w18_small: its stages cannot be told apart"):
        build_optimizer(model, replace(CONFIG, layer_decay=0.9))
    with pytest.raises(ValueError, match="hrnet_w18_small: its stages cannot be told apart"):
        model.backbone.freeze(1)


@covers("train.scale_learning_rate_from", "train.batch_size")
def test_the_rate_follows_the_batch_if_asked_to() -> None:
    """Chosen for 16 images, used with 4: a quarter."""
    config = replace(CONFIG, batch_size=4, scale_learning_rate_from=16)
    model = tiny.model()
    assert {rate for rate, *_ in settings(model, config).values()} == {0.125, 0.03125}
    unasked = replace(CONFIG, batch_size=4)
    assert {rate for rate, *_ in settings(model, unasked).values()} == {0.5, 0.125}
    assert list(describe_rates(unasked)) == []
    every = replace(config, layer_decay=0.5, freeze_backbone=1)
    assert list(describe_rates(every)) == [
        "learning rate 0.125 for batches of 4: that of batches of 16 is 0.5",
        "learning rates of the backbone's stages: 0.00390625, 0.0078125, 0.015625, 0.03125",
        "not trained: stages 1 to 1 of the backbone's 4",
    ]
