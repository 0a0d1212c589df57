"""The learning rate over a run: warm-up, milestones, cosine, by iterations and by the clock."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignmask.config import DataConfig
from alignmask.training import clock as clock_module
from alignmask.training import log as log_module
from alignmask.training.optimizer import learning_rate_factor
from alignmask.training.trainer import Trainer
from tests.covers import covers
from tests.training.runs import TRAIN, RecordingTrainer, config, lines


@covers("train.warmup", "train.milestones", "train.schedule")
def test_learning_rate_factors() -> None:
    step = replace(TRAIN, schedule="step", warmup=4, milestones=(0.4, 0.889))
    assert [learning_rate_factor(step, s, 0.0) for s in range(6)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    for progress, factor in ((0.3999, 1), (0.4, 0.1), (0.8889, 0.1), (0.889, 0.01), (1.0, 0.01)):
        assert learning_rate_factor(step, 50, progress) == pytest.approx(factor), progress
    assert learning_rate_factor(step, 1, 0.5) == pytest.approx(0.05)  # both at once
    cosine = replace(step, schedule="cosine", warmup=0)
    for progress, factor in (
        (0, 1),
        (1 / 4, 0.8535533906),
        (1 / 3, 0.75),
        (1 / 2, 0.5),
        (2 / 3, 0.25),
        (1, 0),
        (1.2, 0),
    ):
        assert learning_rate_factor(cosine, 0, progress) == pytest.approx(factor), progress
    assert learning_rate_factor(replace(cosine, warmup=4), 0, 1 / 3) == pytest.approx(0.75 / 4)


@covers("train.schedule", "train.warmup")
def test_cosine_over_a_run(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two measures of progress the one that is further counts: with minutes in plenty, that
    is the iterations."""
    monkeypatch.setattr(Trainer, "evaluate", lambda self: None)
    run = Trainer(
        config(
            shapes,
            tmp_path,
            schedule="cosine",
            warmup=2,
            learning_rate=4e-3,
            iterations=4,
            log_every=1,
            max_minutes=1e4,
        )
    ).run()
    shares = [0.5 * 1, 1 * (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert [line["lr"] for line in lines(run)] == pytest.approx(
        [4e-3 * share for share in shares], rel=1e-4
    )


@covers("train.max_minutes", "train.schedule")
def test_a_time_limit_drives_the_schedule_and_ends_the_run(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 3 s of 12 s; saving and evaluating take 100 s, which do not count; nor does the
    time between two runs."""
    clock = SimpleNamespace(now=1000.0)
    for module in (clock_module, log_module):
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time)
        )

    class Timed(RecordingTrainer):
        kill_at = -1

        def train_step(self, batches: Any) -> Any:
            if self.step == self.kill_at:
                raise MemoryError("killed")
            clock.now += 3
            return super().train_step(batches)

        def save(self) -> None:
            super().save()
            clock.now += 100

        def evaluate(self) -> Any:
            clock.now += 100

    settings = config(
        shapes, tmp_path, schedule="cosine", warmup=0, iterations=1000, max_minutes=0.2, log_every=2, checkpoint_every=2,
        evaluate_every=3,
    )  # fmt: skip
    first = Timed(settings)
    first.kill_at = 2
    with pytest.raises(MemoryError):
        first.run()
    clock.now += 5000
    second = Timed(settings)
    assert second.elapsed == 6
    run = second.run()
    shares = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    rates = [max(step.rates.values()) for step in first.steps[:2] + second.steps]
    assert rates == pytest.approx([1e-3 * share for share in shares])
    assert second.elapsed == 12
    assert lines(run)[0]["it_per_s"] == pytest.approx(1 / 3)
