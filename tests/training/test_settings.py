"""Settings of the training that cannot be are refused before anything is read or trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignmask.config import DataConfig, TrainConfig
from alignmask.training.checks import LEAST, check_settings
from alignmask.training.trainer import Trainer
from tests.training.runs import config


@pytest.mark.parametrize("name", LEAST)
def test_settings_below_their_least_are_refused_before_any_data_is_read(
    name: str, tmp_path: Path
) -> None:
    nowhere = DataConfig(train_annotations=tmp_path / "missing.json")
    with pytest.raises(ValueError, match=f"train.{name}: expected {LEAST[name]} or more, got -1"):
        Trainer(config(nowhere, tmp_path, **{name: -1}))
    check_settings(replace(TrainConfig(), **{name: LEAST[name]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_every": 0}, "train.log_every: expected 1 or more, got 0"),
        ({"learning_rate": float("nan")}, "train.learning_rate: expected 0 or more, got nan"),
        ({"ema": 1.0}, "train.ema: expected at least 0 and less than 1, got 1"),
        ({"milestones": (0.5, 90.0)}, "train.milestones: expected shares of the run, from 0 to 1"),
    ],
)
def test_other_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(replace(TrainConfig(), **change))
