"""The log of a run: metrics.jsonl, trackers, a progress bar."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from alignmask._files import read_json_lines, replacing
from alignmask._printing import ProgressBar, console, plain_column
from alignmask.evaluation.evaluate import Evaluation
from alignmask.training.callbacks import Callback, Run
from alignmask.training.trackers import Trackers

METRICS = "metrics.jsonl"


class Log(Callback):
    """The callback that every run has. Use as a context manager. On any but the first process
    (`active=False`) everything is a no-op."""

    def __init__(
        self,
        run: Path,
        first_step: int,
        iterations: int,
        active: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self.active, self.run, self.step, self.iterations = active, run, first_step, iterations
        self.trackers = trackers
        self.console = console(stderr=True)
        if not active:
            return
        _forget_after(run / METRICS, first_step)
        self.file = (run / METRICS).open("a")
        self.progress = ProgressBar(
            MofNCompleteColumn(),
            plain_column("{task.fields[speed]}"),
            TimeElapsedColumn(),
            plain_column("{task.fields[rest]}"),
            plain_column("{task.fields[losses]}"),
            console=self.console,
            disable=not self.console.is_terminal,  # a file gets lines instead
        )
        self.task = self.progress.add_task(
            "train", total=iterations, completed=first_step, speed="", rest="", losses=""
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
            if self.trackers is not None:
                self.trackers.close()

    # -- what the run tells
    # ----------------------------------------------------------------------------------------------

    def on_start(self, trainer: Run) -> None:
        self.window = Window(trainer.elapsed)

    def on_step(self, trainer: Run, step: int, values: dict[str, torch.Tensor]) -> None:
        t = trainer.config.train
        self.window.add(values)
        self.advance(step)
        if step % t.log_every == 0 or step == t.iterations:
            rate = trainer.optimizer.param_groups[-1]["lr"]
            self.metrics(step, self.window.means(trainer.elapsed, lr=rate), trainer.remaining)

    def on_evaluation(self, trainer: Run, step: int, evaluation: Evaluation) -> None:
        scalars = {f"AP_{mode}": metrics.AP for mode, metrics in evaluation.metrics.items()}
        self.evaluation(step, evaluation.as_dict(), scalars)

    # -- what is written
    # ----------------------------------------------------------------------------------------------

    def advance(self, step: int) -> None:
        """step: number of finished iterations."""
        if self.active:
            self.progress.update(self.task, completed=step)

    def metrics(self, step: int, values: dict[str, float], seconds_left: float = math.inf) -> None:
        """Means over the last iterations: one JSON line, scalars of the trackers, and the text of
        the progress bar.

        seconds_left: What `train.max_minutes` leaves.
        """
        if not self.active:
            return
        self._line({"step": step, "time": time.time(), **values})
        self._track({f"train/{name}": value for name, value in values.items()}, step)
        shown = [(n, v) for n, v in values.items() if n not in ("lr", "it_per_s", "grad_norm")]
        losses = " ".join(f"{_short(name)} {value:.3g}" for name, value in shown)
        speed = f"{values['it_per_s']:.2f} it/s"
        eta = min((self.iterations - step) / values["it_per_s"], seconds_left)
        rest = f"ETA {duration(eta)}  peak {peak_of_the_process() / 2**30:.1f} GiB"
        self.progress.update(
            self.task, completed=step, speed=speed, rest=rest, losses=losses, refresh=True
        )
        if not self.console.is_terminal:
            self.say(f"step {step}/{self.iterations}  {speed}  {rest}  {losses}")

    def evaluation(self, step: int, evaluation: dict[str, Any], scalars: dict[str, float]) -> None:
        if not self.active:
            return
        self._line({"step": step, "time": time.time(), "eval": evaluation})
        self._track({f"eval/{name}": value for name, value in scalars.items()}, step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        if self.active and self.trackers is not None:
            self.trackers.picture(tag, file, step)

    def _track(self, scalars: dict[str, float], step: int) -> None:
        if self.trackers is not None:
            self.trackers.scalars(scalars, step)

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

    def __init__(self, elapsed: float) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.since = 0, elapsed

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self, elapsed: float, **more: float) -> dict[str, float]:
        """elapsed: Seconds of training so far, without evaluations and checkpoints."""
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        speed = self.steps / max(elapsed - self.since, 1e-9)
        self.sums, self.steps, self.since = {}, 0, elapsed
        return {**means, **more, "it_per_s": speed}


def last_evaluation(run: Path) -> int | None:
    """The iteration after which a run was last evaluated; None if it never was."""
    lines = read_json_lines(run / METRICS)
    return max((line["step"] for line in lines if "eval" in line), default=None)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def peak_of_the_process() -> int:
    """Bytes: the most that torch has allocated on the GPU, or, without one, that this process has
    had in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    with replacing(path) as part:
        part.write_text("".join(kept))
