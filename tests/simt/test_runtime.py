"""The host SIMT runtime: a right kernel is right in every order of threads, and each class of
mistake is noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.simt import _simt

ORDERS = [("ascending", 0), ("descending", 0), *(("shuffled", seed) for seed in range(4))]
# The second block is not full.
NUMBERS = np.random.default_rng(0).normal(size=200).round(2).tolist()


@pytest.fixture(autouse=True)
def _reset_order() -> object:
    yield
    _simt.set_order("ascending")


def is_right(bug: str, order: tuple[str, int]) -> bool:
    _simt.set_order(*order)
    sums, positive = _simt.planted(bug, NUMBERS)
    shares = NUMBERS[:128], NUMBERS[128:]
    expected = [sum(share) for share in shares]
    return (
        np.allclose(sums[:2], expected, atol=1e-4)
        and math.isnan(sums[2])
        and positive == [sum(x > 0 for x in share) for share in shares]
    )


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_right_kernel_is_right_in_every_order(order: tuple[str, int]) -> None:
    assert is_right("none", order)


@pytest.mark.parametrize(
    "bug",
    [
        "missing barrier",
        "missing __syncwarp",
        "unchecked tail",
        "off-by-one write",
        "read before write",
    ],
)
def test_wrong_results_show(bug: str) -> None:
    """Poisoned memory and the order of threads make these visible in results; the sanitizers name
    the place."""
    assert not all(is_right(bug, order) for order in ORDERS)


ERRORS = {
    "short shuffle mask": r"block \d, thread \d+: __shfl_xor_sync with a mask that lacks the calling lane",
    "ballot of the departed": r"no thread can go on: .* 16 have left the kernel; __ballot_sync misses lanes",
    "divergent barrier": r"no thread can go on: 64 threads wait at __syncthreads, 0 at a warp operation, 64 have left",
    "off-by-one in shared memory": r"a shared array of 512 bytes was written behind its end",
    "misaligned": r"an access of 16 bytes is not aligned to them",
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("bug", list(ERRORS))
def test_errors_say_what_is_wrong(bug: str, order: tuple[str, int]) -> None:
    _simt.set_order(*order)
    with pytest.raises(_simt.Error, match=ERRORS[bug]):
        _simt.planted(bug, NUMBERS)
    assert is_right("none", order), "the runtime recovers"
