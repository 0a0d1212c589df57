"""A short run of the bindings' fuzzer; `python -m tests.ops.fuzz_bindings --calls 100000` is the
long one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.ops import fuzz_bindings


@pytest.mark.parametrize("seed", [1, 2])
def test_random_arguments(seed: int) -> None:
    """In a process of its own: its memory is limited, so that huge sizes cannot fill the
    machine."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.fuzz_bindings", "--calls", "2000", "--seed", str(seed)],
        capture_output=True, text=True, timeout=300, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MemoryError" in done.stdout or "ValueError" in done.stdout
    returned = int(done.stdout.split(" returned")[0].split()[-1])
    assert returned > 400, "nearly every call was refused: the kernels were not reached"


def test_the_fuzzer_sees_a_write_outside_of_an_output() -> None:
    rng = np.random.default_rng(0)
    holder = fuzz_bindings.Holder(rng, [3, 2], "float32", None)
    assert holder.is_intact(written=True)
    holder = fuzz_bindings.Holder(rng, [3, 2], "float32", None)
    holder.bytes[0] ^= 1
    assert not holder.is_intact(written=True)
    holder = fuzz_bindings.Holder(rng, [3, 2], "float32", None)
    holder.view[0, 0] = 12345
    assert not holder.is_intact(written=False)
    assert holder.is_intact(written=True)


@pytest.mark.parametrize(
    "message", ["mask_iou: what", "threshold is wrong", "quality_focal_loss: threshold is wrong"]
)
def test_the_fuzzer_sees_a_message_without_op_or_argument(message: str) -> None:
    assert not fuzz_bindings.explains(ValueError(message), "mask_iou_forward", {"threshold", "iou"})
    assert fuzz_bindings.explains(
        ValueError("mask_iou: threshold is wrong"), "mask_iou_forward", {"threshold", "iou"}
    )
