"""One tiny data set and one recorded run for all tests of the training."""

from __future__ import annotations

import pytest

from alignmask.config import DataConfig, ShapesConfig
from tests.training.runs import RecordingTrainer, unlike_config


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("shapes")
    return DataConfig(
        shapes=ShapesConfig(root=root, train_images=8, val_images=3, size=64),
        crop=64, eval_short_side=64, eval_max_side=64, workers=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def recorded(shapes: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> RecordingTrainer:
    """A finished run of eight iterations whose settings are all unlike their defaults and unlike
    one another."""
    trainer = RecordingTrainer(unlike_config(shapes, tmp_path_factory.mktemp("recorded")))
    trainer.run()
    return trainer
