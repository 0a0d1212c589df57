"""The log of a run: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from alignmask._printing import console, plain_column, progress_columns

METRICS = "metrics.jsonl"


class Log:
    """Use as a context manager. On any but the first process (`active=False`) everything is a
    no-op."""

    def __init__(self, run: Path, first_step: int, iterations: int, active: bool = True) -> None:
        self.active, self.run, self.step = active, run, first_step
        self.console = console(stderr=True)
        if not active:
            return
        _forget_after(run / METRICS, first_step)
        self.file = (run / METRICS).open("a")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self.progress = Progress(
            *progress_columns(),
            MofNCompleteColumn(),
            plain_column("{task.fields[speed]}"),
            TimeElapsedColumn(),
            plain_column("ETA"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            plain_column("{task.fields[losses]}"),
            console=self.console,
            speed_estimate_period=120,
        )
        self.task = self.progress.add_task(
            "train", total=iterations, completed=first_step, speed="", losses=""
        )

    def __enter__(self) -> Log:
        if self.active:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            self.progress.stop()
            self.file.close()
            self.board.close()

    def advance(self, step: int) -> None:
        """step: number of finished iterations."""
        if self.active:
            self.progress.update(self.task, completed=step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Means over the last iterations: one JSON line, TensorBoard scalars, and the text of the
        progress bar."""
        if not self.active:
            return
        self._line({"step": step, "time": time.time(), **values})
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, step)
        shown = [(n, v) for n, v in values.items() if n not in ("lr", "it_per_s", "grad_norm")]
        losses = " ".join(f"{_short(name)} {value:.3g}" for name, value in shown)
        self.progress.update(
            self.task, completed=step, speed=f"{values['it_per_s']:.2f} it/s", losses=losses
        )
        if not self.console.is_terminal:
            self.say(f"step {step}  {values['it_per_s']:.2f} it/s  {losses}")

    def evaluation(self, step: int, evaluation: dict[str, Any], scalars: dict[str, float]) -> None:
        if not self.active:
            return
        self._line({"step": step, "time": time.time(), "eval": evaluation})
        for name, value in scalars.items():
            self.board.add_scalar(f"eval/{name}", value, step)
        self.board.flush()

    def say(self, text: Any) -> None:
        if self.active:
            self.progress.console.print(text, soft_wrap=isinstance(text, str))

    def _line(self, values: dict[str, Any]) -> None:
        # JSON has no infinity: the norm of fp16 gradients that overflow, whose step is skipped, is
        # written as null.
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()


class Window:
    """Means of the values since the last line of the log. The sums stay on the device, so that no
    step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.since = 0, time.monotonic()

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self, **more: float) -> dict[str, float]:
        now = time.monotonic()
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        speed = self.steps / (now - self.since)
        self.sums, self.steps, self.since = {}, 0, now
        return {**means, **more, "it_per_s": speed}


def last_evaluation(run: Path) -> int | None:
    """The iteration after which a run was last evaluated; None if it never was."""
    lines = (json.loads(line) for line in (run / METRICS).read_text().splitlines())
    return max((line["step"] for line in lines if "eval" in line), default=None)


def _short(name: str) -> str:
    return name.replace("aligned_", "a.").replace("classification", "cls")


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of iterations that a resumed run will repeat, and an incomplete last line of a
    killed run."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    path.write_text("".join(kept))
