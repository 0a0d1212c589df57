"""What test_processes.py compares: `python -m tests.training.forks FOLDER` trains the same run in
1, 2 and 4 processes (gloo), with and without accumulation, and with another number of processes
from its second iteration on. Notes in FOLDER what each saw.

The processes are forked, so that what is imported is imported once.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignmask import ops
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.training.signals import Stopped
from tests import tiny
from tests.same_points import mask_points
from tests.training.runs import RecordingTrainer, small
from tests.training.two_processes import same_points_for_all

RUNS = ((1, 1), (1, 4), (2, 2), (4, 2))
"""(processes, accumulation steps): of 8 images in one step, 8, 2, 2 and 1 at a time."""
RESUMES = ((1, 2), (2, 1))
"""Processes of the first iteration, and of the others."""
SMOOTH = 1e-2
"""AdamW's epsilon. With 1e-8 it moves a weight whose gradient is nothing but rounding errors by the
whole learning rate, in a direction that is chance."""


def settings(root: Path, name: str, accumulate: int) -> Config:
    # With few points in a set, some miss their instance, and that query is not live.
    aligned = replace(tiny.ALIGNED, points=6)
    return Config(
        name, root, tiny.model_config(num_classes=6, aligned_queries=aligned),
        DataConfig(
            shapes=ShapesConfig(root / "shapes", 8, 7, 64), crop=64, eval_short_side=64, eval_max_side=64, workers=0
        ),
        LossConfig(points=64),
        TrainConfig(
            iterations=3, batch_size=8, accumulate=accumulate, learning_rate=1e-3, warmup=1, clip=1.0, log_every=1,
            ema=0.5,
        ),
    )  # fmt: skip


class Noting(RecordingTrainer):
    """Also notes how many aligned queries were live, and which images it predicted."""

    def __init__(self, config: Config, last: int) -> None:
        super().__init__(config)
        self.last = last
        for group in self.optimizer.param_groups:
            group["eps"] = SMOOTH
        self.live: list[int] = []
        self.slots: list[int] = []
        self.predicted: list[int] = []
        self.plain.aligned_queries.register_forward_hook(self._note_live)
        predict = self.ema.module.predict_encoded

        def noted(batch: Any) -> Any:
            self.predicted += batch.image_ids
            return predict(batch)

        self.ema.module.predict_encoded = noted

    def train_step(self, batches: Any) -> Any:
        values = super().train_step(batches)
        self.signals.requested = self.step == self.last
        return values

    def _note_live(self, generator: Any, arguments: Any, found: Any) -> None:
        self.live.append(int(found.live_BA.sum()))
        limit, sets = generator.config.count, generator.config.point_sets
        self.slots.append(sum(min(limit, sets * count) for count in arguments[1].counts))


def train(root: Path, name: str, accumulate: int = 1, last: int = -1) -> None:
    """last: Iteration after which the run is stopped, without notes."""
    rank = int(os.environ.get("RANK", "0"))
    torch.rand = same_points_for_all
    ops.mask_points = mask_points
    torch.set_num_threads(1)
    trainer = Noting(settings(root, name, accumulate), last)
    with (
        open(trainer.run_dir / f"output{rank}.txt", "w") as output,
        redirect_stdout(output),
        redirect_stderr(output),
        suppress(Stopped),
    ):
        trainer.run()
    if last >= 0:
        return
    batches = [batch for step in trainer.steps for batch in step.batches]
    notes = {
        "images": [batch.image_ids for batch in batches],
        "instances": [len(batch.labels_G) for batch in batches],
        "live": trainer.live,
        "slots": trainer.slots,
        "values": [step.values for step in trainer.steps],
        "gradients": [small(step.gradients) for step in trainer.steps],
        "weights": small(trainer.steps[-1].after),
        "ema": small(trainer.ema.module.state_dict()),
        "predicted": trainer.predicted,
    }
    torch.save(notes, root / f"{name}-{rank}.pt")


def start(number: int, work: Callable[[], None]) -> list[int]:
    """Calls it in that many processes, each with the environment that torchrun would give it. The
    processes' ids, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(number):
        if pid := os.fork():
            children.append(pid)
            continue
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for name in ("RANK", "LOCAL_RANK"):
            os.environ[name] = str(rank)
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ[name] = str(number)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return children


def in_processes(number: int, work: Callable[[], None]) -> None:
    """Calls it in that many processes, and waits for their end."""
    failed = [pid for pid in start(number, work) if os.waitpid(pid, 0)[1]]
    if failed:
        raise SystemExit(f"{len(failed)} of {number} processes failed")


def main(root: Path) -> None:
    for processes, accumulate in RUNS:
        name = f"{processes}x{accumulate}"
        in_processes(processes, lambda n=name, a=accumulate: train(root, n, a))
    for before, after in RESUMES:
        name = f"{before}to{after}"
        in_processes(before, lambda n=name: train(root, n, last=0))
        in_processes(after, lambda n=name: train(root, n))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
