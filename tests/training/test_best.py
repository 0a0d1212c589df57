"""By which metric the best checkpoint is chosen, and when a run that no longer improves ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignmask import checkpoint
from alignmask.config import Config, DataConfig
from alignmask.evaluation.evaluate import Evaluation
from alignmask.evaluation.metrics import NUMBERS, CocoMetrics
from alignmask.training import trainer as trainer_module
from alignmask.training.best import METRICS, since_best, value_of
from alignmask.training.trainer import Trainer, train
from tests.covers import covers
from tests.training.runs import RecordingTrainer, config, lines


class ByStep:
    """In place of `evaluate_model`, with the next of `values` as `metric` by the class score. All
    else is 0.5, also by other scores."""

    def __init__(self, metric: str, *values: float | None) -> None:
        self.metric, self.values, self.calls = metric, list(values), 0

    def __call__(self, model: Any, data: Any, *, out: Path, **_: Any) -> Evaluation:
        value = self.values[self.calls]
        self.calls += 1
        (out / "evaluation.json").touch()
        half = dict.fromkeys(NUMBERS, 0.5)
        chosen = {self.metric: value} if self.metric in NUMBERS else {}
        metrics = {"class": CocoMetrics(**half | chosen), "class*mask": CocoMetrics(**half)}
        aligned = {"class": Aligned({self.metric: value}), "class*mask": Aligned({})}
        return Evaluation(metrics, aligned, "class", 3, 0)  # type: ignore[arg-type]


class Aligned:
    """Statistics of two shares of the predictions, of which that of a tenth counts."""

    def __init__(self, numbers: dict[str, Any]) -> None:
        self.numbers = numbers

    def as_dict(self) -> dict[str, Any]:
        fiftieth = dict.fromkeys(self.numbers, 0.99)
        return {"top": [{"fraction": 0.02, **fiftieth}, {"fraction": 0.1, **self.numbers}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluation, "table", lambda self: "")


def by_class(settings: Config) -> Config:
    return replace(settings, model=replace(settings.model, score="class"))


def evaluating(monkeypatch: pytest.MonkeyPatch, metric: str, *values: float | None) -> ByStep:
    found = ByStep(metric, *values)
    monkeypatch.setattr(trainer_module, "evaluate_model", found)
    return found


@covers("train.best_by")
@pytest.mark.parametrize("metric", ["AP75", "AR10", "pcc_same_class", "mean_iou_any_class"])
def test_the_best_is_that_of_the_highest_value(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Undefined values are worse than any other, and the first evaluation leaves a checkpoint
    whatever its value is."""
    monkeypatch.setattr(Trainer, "train_step", lambda self, batches: {})
    values = (None, 0.2, 0.4, 0.3) if metric not in NUMBERS else (-1.0, 0.2, 0.4, 0.3)
    evaluating(monkeypatch, metric, *values)
    settings = by_class(
        config(shapes, tmp_path, iterations=4, evaluate_every=1, best_by=metric, log_every=9)
    )
    run = train(settings)
    assert checkpoint.load_meta(run / "best")["step"] == 3
    assert Trainer(settings).judge.best == 0.4
    # A resumed run compares with it.
    for value, best in ((0.39, 3), (0.41, 6)):
        evaluating(monkeypatch, metric, value)
        done = checkpoint.load_meta(checkpoint.latest(run))["step"]
        train(replace(settings, train=replace(settings.train, iterations=done + 1)))
        assert checkpoint.load_meta(run / "best")["step"] == best


def test_an_unknown_metric_is_refused_before_any_data_is_read(
    shapes: DataConfig, tmp_path: Path
) -> None:
    nowhere = replace(shapes, shapes=None, train_annotations=tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"no metric 'ap'; expected one of AP, AP50, .*any_class$"):
        Trainer(config(nowhere, tmp_path, best_by="ap"))
    with pytest.raises(ValueError, match=r"train\.patience: expected 1 or more, got 0"):
        Trainer(config(nowhere, tmp_path, patience=0))
    assert not (tmp_path / "run").exists()


def test_metrics_are_found_in_a_real_evaluation(recorded: RecordingTrainer) -> None:
    modes = lines(recorded.run_dir, "eval")[-1]["eval"]["modes"]
    mode = modes["class*mask"]
    (tenth,) = (row for row in mode["alignment"]["top"] if row["fraction"] == 0.1)
    for name in METRICS:
        stored = mode["metrics"][name] if name in NUMBERS else tenth[name]
        expected = -math.inf if stored is None else stored
        assert value_of(modes, "class*mask", name) == expected
    assert value_of(modes, "class*mask", "mean_iou_any_class") >= 0
    assert value_of(modes, "of another version", "AP") == -math.inf


def test_evaluations_since_the_best() -> None:
    assert since_best([]) == since_best([0.1]) == since_best([0.1, 0.2]) == 0
    assert since_best([0.2, 0.2]) == 1  # as good is not better
    assert since_best([0.1, 0.3, 0.2, 0.3, 0.25]) == 3
    assert since_best([-math.inf, -math.inf]) == 1


@covers("train.patience", "train.best_by")
@pytest.mark.parametrize("killed_in", [None, 3, 4])
def test_a_run_without_improvement_ends(
    shapes: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed_in: int | None,
) -> None:
    """After the evaluations 0.1, 0.3, 0.2, 0.3 that is iteration 4, whether it was killed before
    or not; a checkpoint is written every second iteration."""
    aps = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.9, 6: 0.9}
    settings = by_class(
        config(shapes, tmp_path, evaluate_every=1, checkpoint_every=2, patience=2, best_by="AP50")
    )
    kills = [killed_in]

    def evaluate(model: Any, data: Any, **options: Any) -> Evaluation:
        step = trainer.step
        if step == killed_in and kills:
            kills.clear()
            raise MemoryError("killed")
        return ByStep("AP50", aps[step])(model, data, **options)

    monkeypatch.setattr(trainer_module, "evaluate_model", evaluate)
    monkeypatch.setattr(Trainer, "train_step", lambda self, batches: {})
    trainer = Trainer(settings)
    if killed_in:
        with pytest.raises(MemoryError):
            trainer.run()
        trainer = Trainer(settings)
    run = trainer.run()
    assert [line["step"] for line in lines(run, "eval")] == [1, 2, 3, 4]
    assert checkpoint.load_meta(checkpoint.latest(run))["step"] == 4
    assert checkpoint.load_meta(run / "best")["step"] == 2
    said = " ".join(capsys.readouterr().err.split())
    reason = "2 evaluations in a row without a better AP50 than 0.3 (train.patience 2)"
    assert f"iteration 4 is the last: {reason}" in said
    # It is finished until there is more patience.
    trainer = Trainer(settings)
    trainer.run()
    said = " ".join(capsys.readouterr().err.split())
    assert (trainer.step, len(lines(run, "eval"))) == (4, 4)
    assert "is finished: 4 iterations; raise --train.patience to go on" in said
    trainer = Trainer(replace(settings, train=replace(settings.train, patience=3)))
    trainer.run()
    assert (trainer.step, trainer.judge.best) == (6, 0.9)
