"""A short form of the long run (`python -m tests.training.long_run`): nothing grows."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_apart
from tests.training import long_run


@pytest.mark.slow
def test_nothing_grows_in_some_hundred_steps(tmp_path: Path) -> None:
    """The bound on memory is far above its noise, which is some MiB, and finds a leak of 100 KiB a
    step."""
    command = [sys.executable, "-m", "tests.training.long_run", str(tmp_path), "--steps", "600"]
    run_apart([*command, "--warm-up", "200"], timeout=600)
    ((early, *_, last),) = long_run.read(tmp_path, 200)
    assert last["step"] == 600
    assert (last["descriptors"], last["threads"]) == (early["descriptors"], early["threads"])
    assert last["kib"] - early["kib"] < 40_000
    assert last["files"] == early["files"]
    assert last["logs"] < 600 * 1000


def sample(step: int, **changes: Any) -> dict[str, Any]:
    one = {"kib": 1000, "descriptors": 14, "threads": 3}
    return {
        "pid": 1, "step": step, **one, "loaders": [one], "it_per_s": 5.0, "cpu_s": step / 10, "logs": step * 100,
        "files": 7, **changes,
    }  # fmt: skip


def write(folder: Path, samples: list[dict[str, Any]]) -> None:
    lines = [json.dumps(one) + "\n" for one in samples]
    (folder / long_run.SAMPLES).write_text("".join(lines))


def test_a_trend_is_found_with_its_uncertainty() -> None:
    steps = np.arange(50, 20_001, 50)
    slope, margin = long_run.trend(steps, 3 + 0.002 * steps)
    assert slope == pytest.approx(2)
    assert margin < 1e-6
    noise = np.random.default_rng(0).normal(size=(200, len(steps)))
    found = [long_run.trend(steps, 0.0001 * steps + line) for line in noise]
    covered = sum(abs(slope - 0.1) <= margin for slope, margin in found)
    assert 180 <= covered <= 198  # of 200, as 95 % intervals do


def test_the_report_says_what_grows(tmp_path: Path) -> None:
    steps = range(50, 5001, 50)
    write(tmp_path, [sample(step, kib=1000 + step, threads=3 + (step > 4000)) for step in steps])
    first, trainer, loader, speed, cpu, logs = long_run.report(tmp_path, 1000)
    assert first == "steps 1100 to 5000, 79 samples"
    assert trainer.startswith("  trainer: +1000 ±")
    assert trainer.endswith("first 2100, last 6000 KiB; descriptors 14, threads 3 to 4")
    assert loader.startswith("  loader: +0 ± 0 KiB")
    assert "median 5.00" in speed
    assert "median 100.0" in cpu
    assert logs == "  logs: 100 bytes a step; files of the run: 7"


def test_each_process_that_continued_a_run_is_looked_at_alone(tmp_path: Path) -> None:
    """A new one begins with less memory, and warms up again."""
    write(tmp_path, [sample(s, pid=1 + (s > 500), kib=1000 - s) for s in range(50, 1001, 50)])
    first, second = long_run.read(tmp_path, 100)
    assert [first[0]["step"], second[0]["step"]] == [200, 700]


def test_a_process_is_measured_by_the_system() -> None:
    before = long_run.held(os.getpid())
    # Memory of its own: the allocator may have some left from other tests.
    with open(__file__), mmap.mmap(-1, 50 * 2**20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        after = long_run.held(os.getpid())
    assert after["descriptors"] == before["descriptors"] + 1
    assert after["threads"] == before["threads"] >= 1
    assert 45_000 < after["kib"] - before["kib"] < 70_000
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        assert pid in long_run.children(os.getpid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
