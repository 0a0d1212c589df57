"""The benchmarks run, and count as they should."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import ModuleType

import pytest

from alignmask import ops
from tests.conftest import REPOSITORY, bench_module


def harness() -> ModuleType:
    return bench_module("harness")


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    module, order = harness(), []
    clock = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    measurement = module.Measurement(
        "ms_deform_attn",
        {},
        1,
        lambda: order.append(ops.implementation("ms_deform_attn", "cpu").split()[0]),
        peers={"peer": lambda: order.append("peer") or next(clock)},
    )
    row = module.measure(measurement, seconds=0, least=4)
    assert order == ["reference", "kernel", "peer"] * 5  # one warm-up each
    assert [(result.turns, result.median) for result in row.results] == [
        (4, 1.0),
        (4, 1.0),
        (4, 2.0),
    ]
    assert row.ratios == {"reference": 1, "peer": 2}


def test_quartiles() -> None:
    assert harness().quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2, 3, 4)
    assert harness().quartiles([7.0]) == (7, 7, 7)


@pytest.mark.slow
@pytest.mark.parametrize("op", ops.OPS)
def test_scripts_run(op: str) -> None:
    script = REPOSITORY / "bench" / f"bench_{op}.py"
    done = subprocess.run(
        [sys.executable, script, "--quick"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "reference x " in done.stdout
