"""A step is that of one process with all its images, whatever is shared: among processes, or over
micro-batches one after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import run_apart
from tests.training.forks import RESUMES, RUNS
from tests.training.runs import lines

pytestmark = pytest.mark.slow
"""tests/training/test_iteration.py and tests/loss/test_normalisers.py see in one process and in two
what these do."""
RESUMED = [f"{before}to{after}" for before, after in RESUMES]
Notes = dict[tuple[int, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    run_apart([sys.executable, "-m", "tests.training.forks", str(folder)], timeout=900)
    return folder


@pytest.fixture(scope="module")
def notes(root: Path) -> Notes:
    return {
        (processes, accumulate): [
            torch.load(root / f"{processes}x{accumulate}-{rank}.pt") for rank in range(processes)
        ]
        for processes, accumulate in RUNS
    }


def test_the_parts_of_a_step_are_unlike_one_another(notes: Notes) -> None:
    """Or else it would not matter what their losses are divided by."""
    (whole,) = notes[1, 1]
    for (_, accumulate), ranks in notes.items():
        for number in range(3):
            mine = slice(number * accumulate, (number + 1) * accumulate)
            for what in ("instances", "live"):
                parts = [count for rank in ranks for count in rank[what][mine]]
                assert sum(parts) == whole[what][number]
                assert len(set(parts)) > 1 or len(parts) == 1
            images = [i for rank in ranks for ids in rank["images"][mine] for i in ids]
            assert sorted(images) == sorted(whole["images"][number])
    assert sum(whole["live"]) < sum(whole["slots"])  # some sets missed their instance


@pytest.mark.parametrize("run", RUNS[1:], ids=str)
def test_losses_and_gradients_are_those_of_one_process(notes: Notes, run: tuple[int, int]) -> None:
    """They are the same sums in another order, and float32 rounds each addition by 6e-8 of its
    value. A loss adds up numbers of one sign, so that these errors stay relative to it. A gradient
    adds up numbers that cancel, so its error is one of the largest (0.2): 3e-7 was seen."""
    (whole,), ranks = notes[1, 1], notes[run]
    for number in range(3):
        assert all(value > 0 for value in whole["values"][number].values())
        for name, value in whole["values"][number].items():
            mean = sum(rank["values"][number][name] for rank in ranks) / len(ranks)
            assert mean == pytest.approx(value, rel=1e-5), (number, name)
        for rank in ranks:
            torch.testing.assert_close(
                rank["gradients"][number], whole["gradients"][number], rtol=1e-4, atol=2e-6
            )


@pytest.mark.parametrize("name", [*(f"{p}x{a}" for p, a in RUNS[1:]), *RESUMED])
@pytest.mark.parametrize("what", ["weights", "ema"])
def test_final_weights_are_those_of_one_process(root: Path, name: str, what: str) -> None:
    """A gradient that is wrong by 3e-7 moves a weight by at most a tenth of that in a step (the
    learning rate over epsilon); the last bit of a weight of 1 is 1.2e-7, and that was seen."""
    whole = torch.load(root / "1x1-0.pt")
    ranks = [torch.load(path) for path in root.glob(f"{name}-?.pt")]
    assert ranks
    for rank in ranks:
        torch.testing.assert_close(rank[what], whole[what], rtol=0, atol=5e-7)


@pytest.mark.parametrize("resume", RESUMES, ids=str)
def test_other_processes_may_continue_a_run(
    root: Path, notes: Notes, resume: tuple[int, int]
) -> None:
    """They share the images that are next."""
    before, after = resume
    ranks = [torch.load(root / f"{before}to{after}-{rank}.pt") for rank in range(after)]
    assert [len(rank["images"]) for rank in ranks] == [2] * after
    for number in (0, 1):
        images = [image for rank in ranks for image in rank["images"][number]]
        assert images == notes[1, 1][0]["images"][number + 1]
    assert [line["step"] for line in lines(root / f"{before}to{after}")] == [1, 2, 3]


def test_each_image_is_evaluated_once(root: Path, notes: Notes) -> None:
    """Seven images: two for three of four processes, and one for the last."""
    for (processes, _), ranks in notes.items():
        predicted = [rank["predicted"] for rank in ranks]
        assert sorted(image for images in predicted for image in images) == list(range(1, 8))
        assert [len(images) for images in predicted] == [-(-(7 - r) // processes) for r in range(processes)]  # fmt: skip
    expected = json.loads((root / "1x1" / "results.json").read_text())
    assert {entry["image_id"] for entry in expected} == set(range(1, 8))
    for processes, accumulate in RUNS[1:]:
        found = json.loads((root / f"{processes}x{accumulate}" / "results.json").read_text())
        assert [entry["image_id"] for entry in found] == [entry["image_id"] for entry in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-3)


def test_four_processes_leave_one_log(root: Path) -> None:
    run = root / "4x2"
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    assert [line["step"] for line in lines(run, "eval")] == [3]
    assert len((run / "environment.jsonl").read_text().splitlines()) == 1
    assert len(list(run.glob("tensorboard/*"))) == len(list((root / "1x1").glob("tensorboard/*")))
    said = [(run / f"output{rank}.txt").read_text() for rank in range(4)]
    assert "starts; " in said[0]
    assert said[1:] == [""] * 3
