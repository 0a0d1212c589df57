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


PROFILE = """\
positions: line
events: Ir

ob=(1) /usr/bin/python3
fl=(1) ???
fn=(1) eval
0 1000
cob=(2) /there/_core.so
cfn=(2) forward
calls=2 0
* 77
+1 30

ob=(2)
fn=(2)
0 40
cob=(3) /lib/libc.so.6
cfn=(3) memcpy
calls=1 0
* 500
-3 2

fn=(3)
ob=(3)
0 500
ob=(2)
fn=(4) other
5 7
"""


def test_instructions_are_those_of_the_module_alone() -> None:
    """Neither the interpreter's, nor what the module calls."""
    instructions = bench_module("instructions")
    assert instructions.instructions_of("_core.so", PROFILE) == 40 + 2 + 7
    with pytest.raises(SystemExit, match=r"no instruction of _other\.so"):
        instructions.instructions_of("_other.so", PROFILE)
