"""Runs with a part of the backbone frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignmask import checkpoint
from alignmask.config import BackboneConfig, DataConfig
from alignmask.training.trainer import Trainer
from tests.covers import covers
from tests.training.runs import RecordingTrainer, assert_equal, config, weights


@covers("train.freeze_backbone", "train.layer_decay", "train.scale_learning_rate_from")
def test_frozen_weights_and_statistics_stay(
    shapes: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With BatchNorm that is trained elsewhere, a moving average, and a checkpoint to continue
    from."""
    settings = config(
        shapes, tmp_path, ema=0.5, freeze_backbone=2, layer_decay=0.5, iterations=4,
        scale_learning_rate_from=8, checkpoint_every=2,
    )  # fmt: skip
    backbone = replace(settings.model.backbone, freeze_norm=False, drop_path_rate=0.3)
    settings = replace(settings, model=replace(settings.model, backbone=backbone))
    first = RecordingTrainer(settings)
    before = first.plain.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    first.run()
    frozen = (
        "backbone.body.conv1",
        "backbone.body.bn1",
        "backbone.body.layer1",
        "backbone.body.layer2",
    )
    changed = {
        name for name, value in first.plain.state_dict().items() if not value.equal(before[name])
    }
    assert not [name for name in changed if name.startswith(frozen)]
    rest = {
        name for name in before if name.startswith(("backbone.body.layer3", "backbone.body.layer4"))
    }
    assert rest <= changed  # running statistics among them
    assert {rate for name, rate in first.steps[2].rates.items() if "layer3" in name} == {
        1e-3 / 4 / 10 / 2
    }
    average = checkpoint.load_weights(checkpoint.latest(first.run_dir))
    assert all(
        value.equal(before[name]) for name, value in average.items() if name.startswith(frozen)
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "learning rate 0.00025 for batches of 2: that of batches of 8 is 0.001" in said
    assert "not trained: stages 1 to 2 of the backbone's 4" in said

    stopped = replace(
        settings, name="stopped", train=replace(settings.train, iterations=2, schedule="step")
    )
    Trainer(stopped).run()
    again = Trainer(replace(stopped, train=settings.train))
    assert again.step == 2
    assert_equal(weights(again.run()), weights(first.run_dir))


def test_frozen_modules_compute_as_in_evaluation(shapes: DataConfig, tmp_path: Path) -> None:
    """Their paths are not dropped, and their BatchNorm uses the statistics that it has."""
    backbone = BackboneConfig("resnet10t", pretrained=False, freeze_norm=False, drop_path_rate=0.9)
    settings = config(shapes, tmp_path, freeze_backbone=3)
    trainer = Trainer(replace(settings, model=replace(settings.model, backbone=backbone)))
    model = trainer.model.train().backbone
    assert not any(m.training for m in model.body.layer3.modules())
    assert all(m.training for m in model.body.layer4.modules())
    assert model.body.training
    image = torch.rand(1, 3, 64, 64) * 255
    assert model(image)[2].equal(model.eval()(image)[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze_backbone": 5}, "train.freeze_backbone: expected 0 to 4 stages, got 5"),
        ({"freeze_backbone": -1}, "train.freeze_backbone: expected 0 to 4 stages, got -1"),
        ({"layer_decay": 0.0}, "train.layer_decay: expected more than 0 and at most 1, got 0"),
        ({"layer_decay": 1.5}, "train.layer_decay: expected more than 0 and at most 1, got 1.5"),
        (
            {"scale_learning_rate_from": 0},
            "train.scale_learning_rate_from: expected 1 or more, got 0",
        ),
    ],
)
def test_settings_that_cannot_be(
    shapes: DataConfig, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(config(shapes, tmp_path, **change))
