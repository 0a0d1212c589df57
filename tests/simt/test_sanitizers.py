"""All CUDA kernels under sanitizers, and the mistakes that these notice. `make sanitize-simt`
builds and runs this."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
pytestmark = pytest.mark.slow


def run(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = FOLDER / f"simt_{sanitizer}"
    if not program.is_file():
        pytest.skip("not built: `make sanitize-simt` does that")
    options = {"ASAN_OPTIONS": "detect_stack_use_after_return=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **options},
    )


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_is_found_in_the_ops(sanitizer: str) -> None:
    done = run(sanitizer, "ops")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "nothing found\n"


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_nothing_is_found_in_a_kernel_without_a_bug(sanitizer: str) -> None:
    done = run(sanitizer, "bug", "none")
    assert done.returncode == 0, done.stdout + done.stderr


BUGS = {
    "unchecked tail": ("address", "heap-buffer-overflow"),
    "off-by-one write": ("address", "heap-buffer-overflow"),
    "off-by-one in shared memory": ("address", "heap-buffer-overflow"),
    "missing barrier": ("thread", "data race"),
    "missing __syncwarp": ("thread", "data race"),
}


@pytest.mark.parametrize("bug", list(BUGS))
def test_mistakes_are_found(bug: str) -> None:
    sanitizer, report = BUGS[bug]
    done = run(sanitizer, "bug", bug)
    assert done.returncode != 0
    assert report in done.stderr
    assert "planted" in done.stderr  # the kernel is named
