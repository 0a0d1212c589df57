"""What goes to experiment trackers, and which pictures a run leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignmask.config import DataConfig
from alignmask.data import TrainingStream
from alignmask.pictures import sheets as pictures
from alignmask.training import sheets
from alignmask.training.sheets import Sheets
from alignmask.training.trackers import _named, flat
from alignmask.training.trainer import Trainer, train
from tests.covers import covers
from tests.training.runs import config, lines


def board(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_tensorboard_has_losses_ap_and_pictures(shapes: DataConfig, tmp_path: Path) -> None:
    settings = config(shapes, tmp_path, iterations=2, log_every=1, evaluate_every=1)
    run = train(settings, callbacks=[Sheets(samples=3, images=2)])
    events = board(run)
    names = {f"train/{name}" for name in lines(run)[0].keys() - {"step", "time"}}
    modes = ("class", "class*mask", "class^0.5*mask")
    assert set(events.Tags()["scalars"]) == names | {f"eval/AP_{mode}" for mode in modes}
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines(run)]
    assert events.Tags()["images"] == ["train/samples", "eval/predictions"]
    assert [event.step for event in events.Images("train/samples")] == [0]
    assert [event.step for event in events.Images("eval/predictions")] == [1, 2]
    for tag, file in (
        ("train/samples", "training_samples.png"),
        ("eval/predictions", "predictions.png"),
    ):
        with Image.open(run / file) as picture:
            assert picture.size == (events.Images(tag)[-1].width, events.Images(tag)[-1].height)


def test_tensorboard_forgets_what_is_repeated(shapes: DataConfig, tmp_path: Path) -> None:
    settings = config(shapes, tmp_path, log_every=1)
    trainer = Trainer(settings)
    step = trainer.train_step

    def killed(batches: Any) -> Any:
        if trainer.step == 5:
            raise MemoryError("killed")
        return step(batches)

    trainer.train_step = killed
    with pytest.raises(MemoryError):
        trainer.run()
    assert [event.step for event in board(trainer.run_dir).Scalars("train/loss")] == [1, 2, 3, 4, 5]
    train(settings)
    assert [event.step for event in board(trainer.run_dir).Scalars("train/loss")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@covers("train.trackers")
def test_without_trackers_nothing_is_tracked(shapes: DataConfig, tmp_path: Path) -> None:
    run = train(config(shapes, tmp_path, iterations=1, trackers=()), callbacks=[Sheets()])
    assert not (run / "tensorboard").exists()
    assert (run / "training_samples.png").exists()


@covers("train.trackers")
def test_a_tracker_that_cannot_be_is_refused_before_any_data_is_read(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(shapes, shapes=None, train_annotations=tmp_path / "missing.json")
    with pytest.raises(ValueError, match=r"no tracker 'wand'; expected some of .*wandb"):
        Trainer(config(nowhere, tmp_path, trackers=("tensorboard", "wand")))
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    sentence = r"^train\.trackers: comet_ml is not installed: `pip install comet-ml`, or leave it out of --train\.trackers$"
    with pytest.raises(ImportError, match=sentence):
        Trainer(config(nowhere, tmp_path, trackers=("tensorboard", "comet_ml")))


class Fake:
    """In place of Accelerate's class of a tracker."""

    requires_logging_directory = False
    made: list[Fake]

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, str, Any]] = []
        self.finished = False
        type(self).made.append(self)

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def log_images(self, values: dict[str, Any], step: int) -> None:
        for tag, (image,) in values.items():
            self.pictures.append((step, tag, image.shape))

    def finish(self) -> None:
        self.finished = True


@covers("train.trackers")
def test_other_trackers_get_the_same_and_know_a_continued_run(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wandb(Fake):
        name, made = "wandb", []

    class Mlflow(Fake):
        name, made = "mlflow", []

        def log_artifact(self, file: str, folder: str) -> None:
            self.pictures.append((0, folder, Path(file).name))

    available = [LoggerType.TENSORBOARD, LoggerType.WANDB, LoggerType.MLFLOW]
    monkeypatch.setattr(tracking, "_available_trackers", available)
    for kind in (Wandb, Mlflow):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, kind.name, kind)
    settings = config(
        shapes, tmp_path, "mine", iterations=1, log_every=1, trackers=("wandb", "mlflow")
    )
    run = train(settings)
    train(
        replace(settings, train=replace(settings.train, iterations=2, trackers=("wandb",))),
        callbacks=[Sheets()],
    )
    train(settings, resume=False, callbacks=[Sheets()])
    first, continued, new = Wandb.made
    assert (first.project, first.options["name"], first.options["resume"]) == (
        "alignmask",
        "mine",
        "allow",
    )
    assert first.options["id"] == continued.options["id"] != new.options["id"]
    assert first.settings["train.learning_rate"] == 1e-3
    assert first.settings["train.trackers"] == "['wandb', 'mlflow']"
    assert not (run / "tensorboard").exists()
    steps = [step for step, _ in continued.logged]
    assert steps == [2, 2]
    assert set(continued.logged[1][1]) == {
        "eval/AP_class",
        "eval/AP_class*mask",
        "eval/AP_class^0.5*mask",
    }
    assert [picture[:2] for picture in continued.pictures] == [
        (1, "train/samples"),
        (2, "eval/predictions"),
    ]
    assert all(shape[2] == 3 for *_, shape in continued.pictures)
    assert Mlflow.made[0].options == {"run_name": "mine"}
    assert Mlflow.made[1].pictures == [
        (0, "train/samples/0000000", "training_samples.png"),
        (0, "eval/predictions/0000001", "predictions.png"),
    ]
    assert "eval/AP_class_0.5_mask" in Mlflow.made[0].logged[1][1]
    assert all(tracker.finished for tracker in Wandb.made + Mlflow.made)


def test_names_and_settings() -> None:
    assert _named({"train/loss": 1.0, "eval/AP_class^0.5*mask": 2.0}) == {
        "train/loss": 1.0, "eval/AP_class_0.5_mask": 2.0
    }  # fmt: skip
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}) == {
        "a.b.c": 1,
        "a.d": None,
        "e": "[1, 2]",
    }


def test_the_samples_are_those_that_are_trained_on(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the run, as they are augmented; once in a run."""
    drawn: list[list[Any]] = []

    def grid(samples: list[Any], names: list[str], file: Path) -> None:
        drawn.append(samples)
        pictures.grid_sheet(samples, names, file)

    monkeypatch.setattr(sheets, "grid_sheet", grid)
    settings = config(shapes, tmp_path, iterations=2, seed=5)
    trainer = Trainer(settings, callbacks=[Sheets(samples=3)])
    trainer.run()
    train(settings, callbacks=[Sheets()])
    (samples,) = drawn
    stream = TrainingStream(trainer.train_data, 4, 5)
    assert [sample.image_id for sample in samples] == [stream[n].image_id for n in range(3)]
    assert all(
        np.array_equal(sample.image_CHW, stream[n].image_CHW) for n, sample in enumerate(samples)
    )
    raw = trainer.train_data.load(stream.index(0))
    assert not np.array_equal(raw.image_CHW, samples[0].image_CHW)
