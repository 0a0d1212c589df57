"""Kills a training at random moments, again and again, and continues it each time.

    python -m tests.training.kills --kills 200 --seed 0
    python -m tests.training.kills --kills 50 --processes 2

Of several processes (gloo), all are killed, in any order and up to 0.2 seconds one after another.
After every kill, all checkpoints must be whole. A run that was killed many times must end with the
weights, the moving average, the log and the evaluations of one that never was, bit for bit. Ends
with status 1 and the first difference if one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from alignmask import checkpoint
from alignmask.config import Config, DataConfig, ShapesConfig
from alignmask.training.trainer import train
from tests.training import forks
from tests.training.runs import config, lines


def settings(out: Path, name: str) -> Config:
    data = DataConfig(
        shapes=ShapesConfig(root=out / "shapes", train_images=8, val_images=3, size=64),
        crop=64, eval_short_side=64, eval_max_side=64, workers=0,
    )  # fmt: skip
    return config(
        data, out, name,
        iterations=12, ema=0.9, checkpoint_every=1, evaluate_every=3, keep_checkpoints=2, log_every=1,
    )  # fmt: skip


def seconds_of(settings: Config, processes: int) -> float:
    """Train to the end in processes of its own."""
    begin = time.monotonic()
    if any(_children(settings, processes, None)):
        raise SystemExit("the training that nobody killed has failed")
    return time.monotonic() - begin


def _children(settings: Config, processes: int, kill_after: float | None) -> list[int]:
    """Train in forked processes, which have nothing to import; their wait statuses."""

    def work() -> None:
        with open(settings.out / f"{settings.name}.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if processes == 1:  # a training by itself, without torch.distributed
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                del os.environ[name]
        train(settings)

    children = forks.start(processes, work)
    if kill_after is not None:
        time.sleep(kill_after)
        for number, pid in enumerate(random.sample(children, processes)):
            time.sleep(random.uniform(0, 0.2) if number else 0)
            os.kill(pid, signal.SIGKILL)
    return [os.waitpid(pid, 0)[1] for pid in children]


def moment(run: Path) -> str:
    """Where the kill came, as far as what it left behind tells."""
    if not run.exists():
        return "start"
    if [*run.glob("checkpoints/.step_*"), *run.glob(".best.*"), *run.glob(".*.part*")]:
        return "half a file written"
    return "training" if checkpoint.latest(run) else "before the first checkpoint"


def check_all(run: Path) -> None:
    for folder in [*run.glob("checkpoints/step_*"), *run.glob("best")]:
        checkpoint.check(folder)
        checkpoint.load_weights(folder)
        if folder.name != "best":
            checkpoint.load_state(folder)


def what_remains(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on kills."""
    last = checkpoint.latest(run)
    assert last is not None
    seen = {
        f"{part}: {name}": tensor
        for part, folder, ema in (("weights", last, False), ("ema", last, True), ("best", run / "best", True))
        for name, tensor in checkpoint.load_weights(folder, ema=ema).items()
    }  # fmt: skip
    logged = [(line["step"], line["loss"], line["lr"]) for line in lines(run)]
    evaluated = [(line["step"], json.dumps(line["eval"])) for line in lines(run, "eval")]
    return {**seen, "log": logged, "evaluations": evaluated}


def difference(run: Path, other: Path) -> str | None:
    first, second = what_remains(run), what_remains(other)
    for name, value in first.items():
        equal = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        if not equal(value, second[name]):
            return f"{name} of {run} and {other} differ"
    return None


def _failed(run: Path, what: str) -> int:
    print(f"{run}: {what}\n{run.with_suffix('.log').read_text()[-2000:]}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(options.seed)
    chance, moments, rounds = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        seconds_of(settings(out, "draws_the_images"), options.processes)
        whole = seconds_of(settings(out, "whole"), options.processes)
        while moments.total() < options.kills:
            run = settings(out, f"round{rounds}")
            path, rounds = run.out / run.name, rounds + 1
            while moments.total() < options.kills:
                kill_after = chance.uniform(0, 0.6 * whole)
                statuses = _children(run, options.processes, kill_after)
                if not any(statuses):
                    break  # it was finished before the kill
                # Of several processes, one may end by itself when another is gone.
                if not any(map(os.WIFSIGNALED, statuses)):
                    return _failed(path, f"the training failed after {moments.total()} kills")
                moments[moment(path)] += 1
                check_all(path)
            if any(_children(run, options.processes, None)):
                return _failed(path, "could not be continued")
            if found := difference(path, out / "whole"):
                return _failed(path, found)
            print(f"{moments.total()} kills, {rounds} runs finished: {dict(moments)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
