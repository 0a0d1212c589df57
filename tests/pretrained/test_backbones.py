"""Backbones of other projects' weights: the tables of shapes, and no weights that are loaded for
nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from transformers import Mask2FormerConfig, SwinConfig

from alignmask import checkpoint
from alignmask.config import Config
from alignmask.config import SwinConfig as SwinShape
from alignmask.pretrained import configs
from alignmask.pretrained.read import initialise_from, read
from tests import tiny
from tests.model import peers


@pytest.mark.parametrize(("shape", "name"), configs.SWINS.items(), ids=configs.SWINS.values())
def test_swin_shapes_are_timms(shape: SwinShape, name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    blocks = [stage.blocks for stage in theirs.layers]
    assert shape.embed_dim == theirs.embed_dim
    assert shape.depths == tuple(map(len, blocks))
    assert shape.heads == tuple(stage[0].attn.num_heads for stage in blocks)
    assert shape.window == blocks[0][0].window_size[0]


@pytest.mark.parametrize(("shape", "name"), configs.RESNETS.items(), ids=configs.RESNETS.values())
def test_resnet_shapes_are_timms(shape: tuple[str, tuple[int, ...]], name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
    stages = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    kind = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}[type(theirs.layer1[0]).__name__]
    assert shape == (kind, tuple(map(len, stages)))


def test_a_shape_that_was_not_published_has_no_weights_to_start_from() -> None:
    shape = SwinShape(48, (2, 2, 4, 2), (2, 4, 8, 16), 5)
    theirs = SwinConfig(
        embed_dim=48,
        depths=[2, 2, 4, 2],
        num_heads=[2, 4, 8, 16],
        window_size=5,
        out_features=peers.STAGES,
    )
    values = Mask2FormerConfig(backbone_config=theirs, **peers.SMALL).to_dict()
    backbone = configs.config_from_huggingface(values, {}).model.backbone
    assert backbone.swin == shape
    assert backbone.pretrained is False


def test_no_weights_of_timm_are_loaded_before_those_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is read says that its backbone began with timm's weights; they would be fetched
    for nothing."""
    model = tiny.model()
    config = Config(
        model=replace(model.config, backbone=replace(model.config.backbone, pretrained=True))
    )
    checkpoint.save(
        tmp_path / "step",
        config,
        model.state_dict(),
        {"class_names": list("abcd"), "category_ids": [1, 2, 3, 4]},
    )
    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *args, **options: (
            asked.append(options.get("pretrained")) or create(*args, **options)
        ),
    )
    loaded, report = initialise_from(read(tmp_path / "step")[1], "step")
    assert not any(asked)
    assert str(report) == "everything was loaded and used"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
