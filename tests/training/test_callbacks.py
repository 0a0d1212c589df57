"""What a run tells its callbacks, when, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignmask.config import DataConfig
from alignmask.evaluation.evaluate import Evaluation
from alignmask.training.batches import MicroBatches
from alignmask.training.callbacks import Callback
from alignmask.training.trainer import Trainer, train
from tests.training.runs import config, lines


class Diary(Callback):
    """Notes every call, and checks what has been done by then."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.losses: dict[int, float] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.notes.append(("start", trainer.step))

    def on_step(self, trainer: Trainer, step: int, values: dict[str, Any]) -> None:
        assert step == trainer.step
        self.notes.append(("step", step))
        self.losses[step] = float(values["loss"])

    def on_evaluation(self, trainer: Trainer, step: int, evaluation: Evaluation) -> None:
        assert isinstance(evaluation, Evaluation)
        assert lines(trainer.run_dir, "eval")[-1]["step"] == step  # the log has it already
        assert (trainer.run_dir / "best").exists()
        self.notes.append(("evaluation", step))

    def on_checkpoint(self, trainer: Trainer, step: int, folder: Path) -> None:
        assert (folder / "state.pt").exists()
        self.notes.append(("checkpoint", step, folder.name))

    def on_end(self, trainer: Trainer) -> None:
        assert not trainer.log.file.closed
        self.notes.append(("end", trainer.step))


def test_a_callback_hears_everything_in_order(shapes: DataConfig, tmp_path: Path) -> None:
    diary = Diary()
    settings = config(
        shapes, tmp_path, iterations=3, checkpoint_every=2, evaluate_every=2, log_every=1
    )
    run = train(settings, callbacks=[diary])
    two, three = "step_0000002", "step_0000003"
    assert diary.notes == [
        ("start", 0), ("step", 1), ("step", 2), ("checkpoint", 2, two), ("evaluation", 2),
        ("step", 3), ("checkpoint", 3, three), ("evaluation", 3), ("end", 3),
    ]  # fmt: skip
    assert diary.losses == {line["step"]: line["loss"] for line in lines(run)}
    again = Diary()
    train(settings, callbacks=[again])
    assert again.notes == [("start", 3), ("end", 3)]


def test_the_end_is_told_after_an_error_too(shapes: DataConfig, tmp_path: Path) -> None:
    class Failing(Callback):
        def on_step(self, trainer: Trainer, step: int, values: dict[str, Any]) -> None:
            raise RuntimeError("of mine")

    first, last = Diary(), Diary()
    with pytest.raises(RuntimeError, match="of mine"):
        train(config(shapes, tmp_path), callbacks=[first, Failing(), last])
    assert first.notes == [("start", 0), ("step", 1), ("end", 1)]
    assert last.notes == [("start", 0), ("end", 1)]


def test_the_order_of_the_images_is_not_listed_in_advance() -> None:
    """Two processes with three images each; of a long run only the first micro-batches are
    looked at."""
    long = MicroBatches(2, 10**12, 3, process=1, processes=2)
    assert len(long) == 10**12 - 2
    first = iter(long)
    assert [list(next(first)) for _ in range(2)] == [[15, 16, 17], [21, 22, 23]]
    assert list(MicroBatches(4, 6, 2)) == [range(8, 10), range(10, 12)]
    assert len(MicroBatches(7, 6, 2)) == 0
