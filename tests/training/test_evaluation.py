"""Which weights a run evaluates, which it keeps as its best, and which a resumed run takes as the
best so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.data import val_dataset
from alignmask.evaluation.evaluate import Evaluation, evaluate_model
from alignmask.evaluation.metrics import NUMBERS, CocoMetrics
from alignmask.model.tiles import Tiles
from alignmask.training import trainer as trainer_module
from alignmask.training.trainer import Trainer, train
from tests import tiny
from tests.covers import covers
from tests.training.runs import RecordingTrainer, assert_equal, config, lines


@covers("train.ema", "train.evaluate_every")
def test_the_moving_average_is_evaluated_and_kept(
    recorded: RecordingTrainer, tmp_path: Path
) -> None:
    last = checkpoint.latest(recorded.run_dir)
    results = {}
    for ema in (True, False):
        model = tiny.model(num_classes=6)
        model.load_state_dict(checkpoint.load_weights(last, ema))
        out = tmp_path / str(ema)
        out.mkdir()
        data = val_dataset(recorded.config.data)
        evaluate_model(model, data, device="cpu", batch_size=2, workers=0, out=out)
        results[ema] = (out / "results.json").read_bytes()
    assert results[True] != results[False]
    assert (recorded.run_dir / "results.json").read_bytes() == results[True]
    best = checkpoint.load_meta(recorded.run_dir / "best")["step"]
    aps = {
        line["step"]: line["eval"]["modes"]["class^0.5*mask"]["metrics"]["AP"]
        for line in lines(recorded.run_dir, "eval")
    }
    assert best == (5 if aps[5] >= aps[8] else 8)


class Scripted:
    """In place of `evaluate_model`: its AP by the default score is the next of `aps`; by the class
    it rises as that falls."""

    def __init__(self, *aps: float) -> None:
        self.aps: Iterator[float] = iter(aps)
        self.arguments: list[dict[str, Any]] = []
        self.weights: list[dict[str, Any]] = []

    def __call__(self, model: Any, data: Any, **arguments: Any) -> Evaluation:
        assert not model.training
        self.arguments.append({"images": len(data), **arguments})
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        # Without it a run evaluates once more at its end.
        (arguments["out"] / "evaluation.json").touch()
        ap = next(self.aps)
        metrics = {
            mode: CocoMetrics(**dict.fromkeys(NUMBERS, value))
            for mode, value in (("class", 1 - ap), ("class*mask", 0.1), ("class^0.5*mask", ap))
        }
        alignment = dict.fromkeys(metrics, self)
        return Evaluation(metrics, alignment, "class^0.5*mask", 3, 0)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        return {}


@covers("train.evaluate_every", "train.ema")
def test_the_best_is_that_of_the_highest_ap(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "table", lambda self: "")
    settings = config(
        shapes,
        tmp_path,
        ema=0.5,
        iterations=4,
        evaluate_every=1,
        checkpoint_every=100,
        accumulate=2,
    )
    settings = replace(settings, data=replace(settings.data, tile=48))
    evaluations = Scripted(0.3, 0.5, 0.4, 0.45)
    monkeypatch.setattr(trainer_module, "evaluate_model", evaluations)
    run = train(settings)
    meta = checkpoint.load_meta(run / "best")
    assert meta["step"] == 2
    assert {mode: numbers["AP"] for mode, numbers in meta["metrics"].items()} == {
        "class": 0.5, "class*mask": 0.1, "class^0.5*mask": 0.5
    }  # fmt: skip
    assert (meta["class_names"][0], meta["category_ids"]) == ("circle", [1, 2, 3, 4, 5, 6])
    assert checkpoint.load_config(run / "best").train == settings.train
    assert_equal(checkpoint.load_weights(run / "best"), evaluations.weights[1])
    assert any(
        not value.equal(evaluations.weights[3][name])
        for name, value in evaluations.weights[1].items()
    )
    # What was evaluated are this checkpoint's only weights.
    assert not (run / "best" / "ema.safetensors").exists()
    assert_equal(checkpoint.load_weights(checkpoint.latest(run)), evaluations.weights[3])
    for arguments in evaluations.arguments:
        assert arguments.pop("device").type == Accelerator().device.type
        assert arguments == {
            "images": 3, "batch_size": 1, "workers": 0, "out": run, "tiles": Tiles(48, 0.2)
        }  # fmt: skip

    # A resumed run compares with the best of before: 0.48 is no better, 0.6 is.
    for aps, iterations, best in (((0.48,), 5, 2), ((0.49, 0.6), 7, 7)):
        evaluations = Scripted(*aps)
        monkeypatch.setattr(trainer_module, "evaluate_model", evaluations)
        train(replace(settings, train=replace(settings.train, iterations=iterations)))
        assert checkpoint.load_meta(run / "best")["step"] == best
    assert_equal(checkpoint.load_weights(run / "best"), evaluations.weights[1])


def test_the_best_is_by_the_configured_score(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluation, "table", lambda self: "")
    monkeypatch.setattr(trainer_module, "evaluate_model", Scripted(0.5, 0.3))
    monkeypatch.setattr(Trainer, "train_step", lambda self, batches: {})
    settings = config(shapes, tmp_path, iterations=2, evaluate_every=1)
    run = train(replace(settings, model=replace(settings.model, score="class")))
    assert checkpoint.load_meta(run / "best")["step"] == 2


def test_training_goes_on_in_training_mode(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a moving average it is the trained model itself that is evaluated."""
    monkeypatch.setattr(Evaluation, "table", lambda self: "")
    monkeypatch.setattr(trainer_module, "evaluate_model", Scripted(0.5, 0.3))
    trainer = RecordingTrainer(
        config(shapes, tmp_path, iterations=2, evaluate_every=1, checkpoint_every=100)
    )
    trainer.run()
    assert trainer.evaluated == [1, 2]
    assert [len(step.batches) for step in trainer.steps] == [1, 1]  # of a model in training mode
    assert all(step.values["aligned_dice"] > 0 for step in trainer.steps)
    assert_equal(checkpoint.load_weights(trainer.run_dir / "best"), trainer.steps[0].after)
