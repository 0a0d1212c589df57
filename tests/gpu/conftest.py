"""Tests for machines with a GPU. Those whose logic does not need one run on the CPU, too, so that
it stays right; a module that needs none at all says `NEEDS_NO_GPU = True`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from alignmask import ops
from alignmask.config import DataConfig, ShapesConfig
from tests.same_points import mask_points

REASON = "no GPU that torch can use: `make test-gpu` on a machine with one runs these"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        device = getattr(item, "callspec", None) and item.callspec.params.get("device")
        needs_one = device != "cpu" and not getattr(
            getattr(item, "module", None), "NEEDS_NO_GPU", False
        )
        if "tests/gpu" in item.path.as_posix() and needs_one:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(params=["cuda", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test runs; kernels of ours must be there."""
    for op in ops.OPS:
        assert ops.implementation(op, request.param).startswith("kernel"), ops.implementation(
            op, request.param
        )
    return request.param


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def float32_is_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers do not depend on the device."""
    rand = torch.rand

    def on_the_host(*size: Any, device: Any = None, **options: Any) -> Tensor:
        return rand(*size, generator=torch.Generator().manual_seed(0), **options).to(
            device or "cpu"
        )

    monkeypatch.setattr(torch, "rand", on_the_host)
    monkeypatch.setattr(ops, "mask_points", mask_points)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("shapes")
    made = ShapesConfig(root=root, train_images=8, val_images=3, size=64)
    return DataConfig(shapes=made, crop=64, eval_short_side=64, eval_max_side=64, workers=0)
