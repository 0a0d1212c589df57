"""A run trains with the losses that its configuration asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.loss import Losses
from alignmask.training.trainer import Trainer
from tests import tiny


def test_a_run_minimises_the_losses_that_are_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the criterion makes of a `LossConfig` is tested beside this file; here: it is the
    run's."""
    shapes = ShapesConfig(tmp_path / "shapes", train_images=2, val_images=1, size=64)
    loss = LossConfig(
        class_weight=3.0, mask_weight=7.0, dice_weight=4.0, aligned_weight=0.6, no_object_weight=0.2, class_cost="focal",
        iou_cost=1.5, gamma=1.7, theta=0.4, weigh_negatives=False, target_score_share=0.3, points=23, oversample=2.0,
        importance=0.5, iou_resolution="prediction",
    )  # fmt: skip
    assert not [name for name, value in vars(LossConfig()).items() if getattr(loss, name) == value]
    data = DataConfig(shapes=shapes, crop=64, eval_short_side=64, eval_max_side=64, workers=0)
    model = tiny.model_config(num_classes=6, classification="focal")
    trainer = Trainer(
        Config("run", tmp_path, model, data, loss, TrainConfig(iterations=1, batch_size=2))
    )
    assert trainer.criterion.loss_config == loss
    assert trainer.criterion.model_config == model

    asked, total = [], Losses.total

    def spy(self: Losses, config: LossConfig) -> torch.Tensor:
        asked.append((config, total(self, config)))
        return asked[-1][1]

    monkeypatch.setattr(Losses, "total", spy)
    values = trainer.train_step(trainer.batches())
    assert [config for config, _ in asked] == [loss]
    assert values["loss"] == asked[0][1]
