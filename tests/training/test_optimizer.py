"""Which parameters learn at which rate, and which of them decay."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from alignmask.config import BackboneConfig, SwinConfig, TrainConfig
from alignmask.training.optimizer import build_optimizer
from tests import tiny
from tests.covers import covers

CONFIG = TrainConfig(learning_rate=0.5, backbone_multiplier=0.25, weight_decay=0.3)


def settings(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    """Parameter -> rate, initial rate and decay."""
    optimizer = build_optimizer(model, CONFIG)  # type: ignore[arg-type]
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
    swin = BackboneConfig(
        "swin_tiny_patch4_window7_224",
        SwinConfig(32, (1, 1, 1, 1), (1, 1, 2, 2), 4),
        pretrained=False,
    )
    model = tiny.model(backbone=swin, aligned_queries=replace(tiny.ALIGNED, learned_position=True))
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
