"""What a run tells others while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from alignmask.config import Config
from alignmask.data import CocoDataset
from alignmask.evaluation.evaluate import Evaluation


class Run(Protocol):
    """What a callback may read of the trainer, which is handed to every method."""

    step: int
    """Number of finished iterations."""
    train_data: CocoDataset
    val_data: CocoDataset
    """Without masks."""
    accelerator: Accelerator
    model: Any
    """As Accelerate has prepared it: `accelerator.unwrap_model(model)` is the AlignMask."""
    optimizer: Any
    ema: Any
    """The moving average of the weights, in its `module`, or None."""

    @property
    def config(self) -> Config: ...

    @property
    def run_dir(self) -> Path: ...

    @property
    def elapsed(self) -> float:
        """Seconds of training, without evaluations and checkpoints."""

    @property
    def remaining(self) -> float:
        """Seconds of training that `train.max_minutes` leaves."""

    def say(self, text: Any) -> None:
        """Print a line above the progress bar, on the main process."""

    def picture(self, tag: str, file: Path) -> None:
        """Hand a PNG to the trackers (`train.trackers`), on the main process."""


class Callback:
    """Override what you need; all methods do nothing. `alignmask.train(config, callbacks=[...])`
    calls them in the order of the list, after the run's own log.

    Of several processes, each calls its own callbacks: `trainer.accelerator.is_main_process` says
    which one should write files. A callback must not change random numbers, weights or gradients if
    a continued run is to have the results of an uninterrupted one.
    """

    def on_start(self, trainer: Run) -> None:
        """Everything is ready. `trainer.step` is 0, or the iteration at which the run continues."""

    def on_step(self, trainer: Run, step: int, values: dict[str, Tensor]) -> None:
        """`step` iterations are finished. `values` are the losses and the gradient's norm of the
        last one, on the device: to read one takes time on a GPU."""

    def on_evaluation(self, trainer: Run, step: int, evaluation: Evaluation) -> None:
        """An evaluation is finished, and the best checkpoint is written if this is it."""

    def on_checkpoint(self, trainer: Run, step: int, folder: Path) -> None:
        """The checkpoint of `step` is written to `folder`."""

    def on_end(self, trainer: Run) -> None:
        """The run ends, at its last iteration or by an error or a signal. It is called once."""
