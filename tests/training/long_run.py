"""Trains for very long and looks at what the process holds: does anything grow?

    python -m tests.training.long_run FOLDER --steps 20000

The tiny model on shapes of 64 pixels, by the real trainer: with a loading process, checkpoints,
evaluations and logs. Every 50 iterations FOLDER/samples.jsonl gets a line with the memory, the open
files, the threads and the speed; the same command continues a run that was stopped. At the end the
trend of each is printed with its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from alignmask.config import Config, DataConfig, ShapesConfig
from alignmask.training.callbacks import Callback, Run
from alignmask.training.trainer import train
from tests.training.runs import config

EVERY = 50
"""Iterations from sample to sample."""
BLOCKS = 20
"""Samples follow one another closely, so a trend is that of the means of this many blocks."""
SAMPLES = "samples.jsonl"


def settings(out: Path, steps: int) -> Config:
    data = DataConfig(
        shapes=ShapesConfig(root=out / "shapes", train_images=64, val_images=4, size=64),
        crop=64, eval_short_side=64, eval_max_side=64, workers=1,
    )  # fmt: skip
    run = config(
        data, out, batch_size=1,
        iterations=steps, ema=0.99, evaluate_every=1000, checkpoint_every=min(500, steps // 8), keep_checkpoints=2,
        log_every=10,
        freeze_backbone=4,  # half of the time, and nothing else like it
    )  # fmt: skip
    decoder = replace(run.model.query_decoder, layers=1)
    return replace(run, model=replace(run.model, query_decoder=decoder))


class Sampler(Callback):
    """Notes what this process and the one that loads its images hold."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_start(self, trainer: Run) -> None:
        self.last = trainer.elapsed

    def on_step(self, trainer: Run, step: int, values: dict[str, torch.Tensor]) -> None:
        if step % EVERY:
            return
        run = trainer.run_dir
        sample = {
            "pid": os.getpid(),
            "step": step,
            **held(os.getpid()),
            "loaders": [held(child) for child in children(os.getpid())],
            "it_per_s": EVERY / (trainer.elapsed - self.last),
            "cpu_s": time.process_time(),
            "logs": sum(file.stat().st_size for file in run.rglob("*") if is_log(file)),
            "files": sum(file.is_file() for file in run.rglob("*")),
        }
        self.last = trainer.elapsed
        with open(self.out / SAMPLES, "a") as file:
            file.write(json.dumps(sample) + "\n")


def is_log(file: Path) -> bool:
    return file.suffix == ".jsonl" or file.name.startswith("events.out")


def held(pid: int) -> dict[str, int]:
    """Resident memory in KiB, open files and threads of a process."""
    process = Path("/proc", str(pid))
    pages = int((process / "statm").read_text().split()[1])
    return {
        "kib": pages * resource.getpagesize() // 1024,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for file in found for child in file.read_text().split())


def read(out: Path, warm_up: int) -> list[list[dict[str, Any]]]:
    """The samples of each process that worked on the run, without its first iterations."""
    processes: dict[int, list[dict[str, Any]]] = {}
    for line in (out / SAMPLES).read_text().splitlines():
        sample = json.loads(line)
        processes.setdefault(sample["pid"], []).append(sample)
    return [
        [sample for sample in samples if sample["step"] > samples[0]["step"] + warm_up]
        for samples in processes.values()
    ]


def trend(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """What a line through the values rises by in 1000 steps, and half the width of its 95 %
    confidence interval."""
    blocks = min(BLOCKS, len(steps))
    x = np.array([np.mean(block) for block in np.array_split(np.asarray(steps) / 1000, blocks)])
    y = np.array([np.mean(block) for block in np.array_split(np.asarray(values, float), blocks)])
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    error = np.sqrt(((y - slope * x) ** 2).sum() / (blocks - 2) / (x @ x))
    return float(slope), float(error * stats.t.ppf(0.975, blocks - 2))


def report(out: Path, warm_up: int) -> list[str]:
    """In words, for each process that has left enough samples."""
    said = []
    for samples in read(out, warm_up):
        if len(samples) < 4:
            continue
        steps = [sample["step"] for sample in samples]
        said.append(f"steps {steps[0]} to {steps[-1]}, {len(samples)} samples")
        both = [[s, *s["loaders"]] for s in samples]
        for number, name in enumerate(("trainer", "loader")):
            if any(len(processes) <= number for processes in both):
                continue
            one = [processes[number] for processes in both]
            memory = [each["kib"] for each in one]
            said.append(
                f"  {name}: {_trend(steps, memory, 'KiB')}; first {memory[0]}, last {memory[-1]} KiB; "
                f"descriptors {_range(one, 'descriptors')}, threads {_range(one, 'threads')}"
            )
        speed = [sample["it_per_s"] for sample in samples]
        said.append(f"  speed: {_trend(steps, speed, 'it/s')}; median {np.median(speed):.2f}")
        cpu = np.diff([sample["cpu_s"] for sample in samples]) / EVERY * 1000
        said.append(f"  CPU: {_trend(steps[1:], cpu, 'ms a step')}; median {np.median(cpu):.1f}")
        logs = [sample["logs"] for sample in samples]
        grown = (logs[-1] - logs[0]) / (steps[-1] - steps[0])
        said.append(
            f"  logs: {grown:.0f} bytes a step; files of the run: {_range(samples, 'files')}"
        )
    return said


def _trend(steps: Sequence[float], values: Sequence[float], unit: str) -> str:
    slope, margin = trend(steps, values)
    return f"{slope:+.4g} ± {margin:.2g} {unit} per 1000 steps"


def _range(samples: list[dict[str, Any]], name: str) -> str:
    low, high = (bound(sample[name] for sample in samples) for bound in (min, max))
    return str(low) if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=2_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    train(settings(options.out, options.steps), callbacks=[Sampler(options.out)])
    print("\n".join(report(options.out, options.warm_up)))


if __name__ == "__main__":
    main()
