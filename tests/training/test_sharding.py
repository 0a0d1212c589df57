"""Processes that share one copy of the model (gloo, CPU) train it as those that have a copy
each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.training.trainer import Trainer
from tests.conftest import run_apart
from tests.covers import covers
from tests.training import shards
from tests.training.runs import config


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def processes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def root(processes: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), shards.__file__, str(folder)]
    run_apart(command, timeout=500)
    return folder


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """AdamW steps along the sign of a gradient, which of mere rounding is chance: in biases before
    a norm and those of keys, which change no output, and in one of a thousand other weights."""
    assert found.keys() == expected.keys()
    different, compared = 0, 0
    for name, value in expected.items():
        if not name.endswith("key.bias") and not (".project." in name and name.endswith("0.bias")):
            alike = torch.isclose(found[name], value, rtol=1e-4, atol=5e-6)
            different, compared = different + int((~alike).sum()), compared + alike.numel()
    assert different < 1e-3 * compared


@covers("train.shard")
def test_each_process_holds_its_part(root: Path, processes: int) -> None:
    ranks = [torch.load(root / f"rank{rank}.pt") for rank in range(processes)]
    for kind in ("weights", "average", "moments"):
        whole = ranks[0][False][kind]
        parts = [rank[True][kind] for rank in ranks]
        assert sum(parts) == whole
        assert max(parts) < 1.02 * whole / processes


@pytest.mark.parametrize("step", [2, 4])
def test_checkpoints_are_those_of_copies(root: Path, step: int) -> None:
    """After two steps, and after two more in which each run has changed to the other way."""
    folders = [
        root / f"shard {shard}" / "checkpoints" / f"step_{step:07d}" for shard in (True, False)
    ]
    for ema in (True, False):
        found, expected = (checkpoint.load_weights(folder, ema) for folder in folders)
        assert_alike(found, expected)
    first, second = (checkpoint.load_state(folder)["optimizer"] for folder in folders)
    assert first["state"].keys() == second["state"].keys()
    assert len(first["state"]) > 50
    for number, expected in second["state"].items():  # moments are in proportion to gradients
        found = first["state"][number]
        assert found["step"] == expected["step"] == step
        for name in ("exp_avg", "exp_avg_sq"):
            largest = float(expected[name].abs().max())
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-3, atol=1e-3 * largest + 1e-7
            )
    assert [group["params"] for group in first["param_groups"]] == [
        group["params"] for group in second["param_groups"]
    ]


def test_evaluations_are_those_of_copies(root: Path) -> None:
    found, expected = (
        json.loads((root / f"shard {shard}" / "results.json").read_text())
        for shard in (True, False)
    )
    assert len(found) == len(expected) > 0
    for first, second in zip(found, expected, strict=True):
        assert first["image_id"] == second["image_id"]
        assert first["score"] == pytest.approx(second["score"], rel=1e-3)
    best = [root / f"shard {shard}" / "best" for shard in (True, False)]
    found, expected = (checkpoint.load_weights(folder) for folder in best)
    assert_alike(found, expected)


def test_one_process_has_nobody_to_share_with(shapes: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.shard: there is one process, and nobody"):
        Trainer(config(shapes, tmp_path, shard=True))
