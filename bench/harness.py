"""Side-by-side timing: all candidates in one process, in turns, so that they share whatever else
the machine does.

A benchmark script lists its measurements and calls `main`; the numbers go to the terminal and, with
the commit, the machine and the versions, into `bench/results/<device>-<date>.json`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # for the cases, which the tests share

from alignmask import ops  # noqa: E402
from tests.ops import cases  # noqa: E402

__all__ = ["Measurement", "cases", "main"]


@dataclass(frozen=True)
class Measurement:
    """What to time: `call` runs once per turn and per implementation of `op`, on `threads` threads;
    `shape`: its sizes.

    `peers`: other ways to the same result, by name; `targets`: how many times faster than a
    candidate the kernel should be.
    """

    op: str
    labels: dict[str, str]
    threads: int
    call: Callable[[], Any]
    shape: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, Callable[[], Any]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """Seconds of one candidate: quartiles over its turns."""

    implementation: str
    turns: int
    lower: float
    median: float
    upper: float


@dataclass
class Row:
    op: str
    labels: dict[str, str]
    threads: int
    shape: dict[str, Any]
    targets: dict[str, float] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster the kernel is than every other candidate, by medians."""
        medians = {result.implementation: result.median for result in self.results}
        kernel = medians.pop("kernel", None)
        return {name: median / kernel for name, median in medians.items()} if kernel else {}


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return lower, median, upper


def measure(measurement: Measurement, seconds: float, least: int = 5) -> Row:
    """Take turns until all candidates together ran for `seconds`, but at least `least` turns
    each."""
    before = torch.get_num_threads()
    torch.set_num_threads(measurement.threads)
    names = cases.implementations(measurement.op, emulated=False)
    candidates = {
        name: functools.partial(_call_using, name, measurement) for name in names
    } | measurement.peers
    times: dict[str, list[float]] = {name: [] for name in candidates}
    try:
        for call in candidates.values():
            call()  # warm-up
        start = time.perf_counter()
        while len(times["reference"]) < least or time.perf_counter() - start < seconds:
            for name, call in candidates.items():
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    results = [Result(name, len(times[name]), *quartiles(times[name])) for name in candidates]
    return Row(
        measurement.op,
        measurement.labels,
        measurement.threads,
        measurement.shape,
        measurement.targets,
        results,
    )


def _call_using(implementation: str, measurement: Measurement) -> None:
    with cases.using(implementation, measurement.op):
        measurement.call()


def environment() -> dict[str, Any]:
    """Everything that a reader needs to place the numbers."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *command], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "core",
            "bindings",
            "python/alignmask/ops",
        ),
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": os.getloadavg(),
        "implementations": {op: ops.implementation(op, "cpu") for op in ops.OPS},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }


def cpu_name() -> str:
    """Name of the processor; where it says next to nothing (virtual machines), with family and
    model."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    }
    name = fields.get("model name", platform.machine())
    return (
        f"{name} (family {fields['cpu family']}, model {fields['model']})"
        if "cpu family" in fields
        else name
    )


def main(*benchmarks: Callable[[argparse.Namespace], Iterator[Measurement]]) -> None:
    """Parse the command line, measure, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to try"
    )
    parser.add_argument("--seconds", type=float, default=3, help="per measurement")
    parser.add_argument(
        "--turns", type=int, default=5, help="at least so many turns per measurement"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few small measurements, and no results file"
    )
    options = parser.parse_args()
    if options.quick:
        options.threads, options.seconds, options.turns = [1], 0.2, 3
    about, rows = environment(), []
    print(
        f"{about['cpu']}, {about['cpus']} CPUs, torch {about['torch']}, commit "
        f"{about['commit'][:9]}"
    )
    for measurements in benchmarks:
        for measurement in measurements(options):
            row = measure(measurement, options.seconds, options.turns)
            rows.append(row)
            print(line(row), flush=True)
            if not options.quick:
                path = write(about, rows)  # as it comes: nothing is lost if the run is stopped
    if not options.quick and rows:
        print(f"written to {path.relative_to(REPOSITORY)}")


def line(row: Row) -> str:
    """One measurement: the kernel's milliseconds with quartiles, then how many times slower the
    others are."""
    parts = [f"{row.op:<19} {' '.join(row.labels.values()):<40} {row.threads}T"]
    kernel = next((result for result in row.results if result.implementation == "kernel"), None)
    if kernel:
        parts.append(
            f"{1e3 * kernel.median:8.2f} ms [{1e3 * kernel.lower:.2f}, {1e3 * kernel.upper:.2f}]".ljust(
                30
            )
        )
        for name, ratio in row.ratios.items():
            target = f" (target {row.targets[name]:g})" if name in row.targets else ""
            parts.append(f"{name} x {ratio:.1f}{target}")
    else:
        parts += [f"{result.implementation} {1e3 * result.median:.2f} ms" for result in row.results]
    return "  ".join(parts)


def write(about: dict[str, Any], rows: list[Row]) -> Path:
    """Add rows to the results file of this device and day; those of the same op are replaced."""
    device = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower().replace("(r)", "")).strip("-")
    path = REPOSITORY / "bench" / "results" / f"{device}-{about['date'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text()) if path.exists() else {}
    for op in {row.op for row in rows}:
        runs[op] = {
            "environment": about,
            "rows": [asdict(row) | {"ratios": row.ratios} for row in rows if row.op == op],
        }
    path.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")
    return path
