"""Tests for machines with a GPU. Those whose logic does not need one run on the CPU, too, so that it stays right; a module
that needs none at all says `NEEDS_NO_GPU = True`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alignmask import ops

REASON = "no GPU that torch can use: `make test-gpu` on a machine with one runs these"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        device = getattr(item, "callspec", None) and item.callspec.params.get("device")
        needs_one = device != "cpu" and not getattr(getattr(item, "module", None), "NEEDS_NO_GPU", False)
        if "tests/gpu" in item.path.as_posix() and needs_one:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(params=["cuda", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test runs; kernels of ours must be there."""
    for op in ops.OPS:
        assert ops.implementation(op, request.param).startswith("kernel"), ops.implementation(op, request.param)
    return request.param


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
