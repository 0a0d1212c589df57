"""Two processes train one model (gloo, CPU), through the command that a user would give, as one
process with all images."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from alignmask import load, ops
from alignmask.data import resolve_paths, val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from tests.conftest import run_apart
from tests.same_points import mask_points
from tests.training import two_processes
from tests.training.hosts import two_hosts
from tests.training.runs import RecordingTrainer, assert_equal, lines, small


@pytest.fixture(
    scope="module", params=["one host", pytest.param("two hosts", marks=pytest.mark.slow)]
)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that two processes have made."""
    folder = tmp_path_factory.mktemp("distributed")
    launch = [sys.executable, "-m", "torch.distributed.run"]
    program = [two_processes.__file__, str(folder)]
    if request.param == "one host":
        run_apart([*launch, "--standalone", "--nproc-per-node", "2", *program], timeout=300)
        return folder
    with two_hosts() as hosts, ThreadPoolExecutor() as pool:
        main = ["--nnodes", "2", "--master-addr", hosts[0].address, "--master-port", "29400"]
        commands = [
            [*host.prefix, *launch, *main, "--node-rank", str(rank), *program]
            for rank, host in enumerate(hosts)
        ]
        list(pool.map(lambda command: run_apart(command, timeout=300), commands))
    return folder


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    return [torch.load(root / f"rank{rank}.pt") for rank in (0, 1)]


def test_two_processes_leave_one_run(root: Path, ranks: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in lines(root / "run")] == [1, 2, 3, 4]
    for first, second in zip(ranks[0]["weights"], ranks[1]["weights"], strict=True):
        assert_equal(first, second)
    for epoch in (0, 2):  # 8 images, 4 a step
        visits = [
            image for rank in ranks for ids in rank["images"][epoch : epoch + 2] for image in ids
        ]
        assert sorted(visits) == list(range(1, 9))
    states = {state.numpy().tobytes() for rank in ranks for state in rank["generators"]}
    assert len(states) == 8  # random points of their own, in every iteration and process


def test_a_signal_to_one_process_stops_both(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [(True, 3, 4)] * 2
    # One clock, where time drives the learning rate.
    assert ranks[0]["elapsed"] == ranks[1]["elapsed"]
    assert 0 < ranks[0]["elapsed"][0] < ranks[0]["elapsed"][1]


def test_an_iteration_is_that_of_one_process_with_all_images(
    root: Path, ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", two_processes.same_points_for_all)
    monkeypatch.setattr(ops, "mask_points", mask_points)
    trainer = RecordingTrainer(two_processes.settings(root, "one"))
    trainer.train_step(trainer.batches())
    (one,) = trainer.steps
    (batch,) = one.batches
    assert batch.image_ids == ranks[0]["images"][0] + ranks[1]["images"][0]
    counts = [sum(rank["instances"][0]) for rank in ranks]
    assert counts[0] != counts[1]  # else it would not matter what the losses are divided by
    assert sum(counts) == len(batch.labels_G)

    assert all(value > 0 for value in one.values.values())
    for name, value in one.values.items():
        mean = sum(rank["values"][0][name] for rank in ranks) / 2
        assert mean == pytest.approx(value, rel=1e-4), name
    expected = small(one.gradients)
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], expected, rtol=1e-3, atol=1e-6)
    # AdamW's first step is along the sign, which of nothing is chance.
    for name, gradient in expected.items():
        certain = gradient.abs() > 1e-4
        found, after = ranks[0]["weights"][0][name][certain], one.after[name][certain]
        torch.testing.assert_close(found, after, rtol=1e-4, atol=1e-6)


def test_evaluation_is_that_of_one_process(
    root: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert torch.equal(ranks[0]["statistics"], ranks[1]["statistics"])  # the first process's
    predictor = load(root / "run")
    assert predictor.class_names[0] == "circle"
    data = val_dataset(resolve_paths(predictor.config.data))
    evaluate_model(predictor.model, data, device="cpu", batch_size=2, workers=0, out=tmp_path)
    found, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (root / "run", tmp_path)
    )
    assert len(found) == len(expected) > 0
    for first, second in zip(found, expected, strict=True):
        assert (first["image_id"], first["category_id"]) == (
            second["image_id"],
            second["category_id"],
        )
        assert first["score"] == pytest.approx(second["score"], rel=1e-4)
