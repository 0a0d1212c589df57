"""`alignmask ablate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignmask import checkpoint
from alignmask.ablation.claims import Claims
from tests.commands.terminal import TINY, Terminal


def ablate_arguments(workshop: Path, out: Path, *more: str, grid: str = "comparison") -> list[str]:
    return [
        "ablate", grid, "shapes_tiny", "--out", str(out), "--name", "grid", "--data.shapes.root", str(workshop / "shapes"),
        "--train.iterations", "1", *TINY, *more,
    ]  # fmt: skip


def test_ablate_trains_a_grid_and_writes_its_table(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    arguments = ablate_arguments(
        workshop, tmp_path, "--seeds", "0", "4", "--only", "no_aql", "full"
    )
    assert alignmask_(*arguments, "--dry-run") == 0
    assert alignmask_.err.count("missing") == 4
    assert not (tmp_path / "grid").exists()

    assert alignmask_(*arguments) == 0
    assert alignmask_.out.startswith("**Mask2Former, with")
    assert alignmask_.out.count("| 2/2 |") == 2
    for ending in ("md", "png", "json"):
        assert (tmp_path / "grid" / f"comparison.{ending}").is_file()
    config = checkpoint.load_config(checkpoint.resolve(tmp_path / "grid" / "full" / "seed4"))
    assert (config.train.seed, config.train.max_minutes, config.loss.class_weight) == (4, None, 6.0)
    result = json.loads((tmp_path / "grid" / "no_aql" / "seed0" / "result.json").read_text())
    assert result["iterations"] == 1

    table = alignmask_.out
    # Less to do, but no less is shown.
    part = ablate_arguments(workshop, tmp_path, "--seeds", "4", "--only", "full")
    assert alignmask_(*part) == 0
    assert alignmask_.out == table
    assert "no_aql" not in alignmask_.err
    assert (tmp_path / "grid" / "comparison.md").read_text() == table.removesuffix("\n")

    assert alignmask_(*arguments) == 0
    assert alignmask_.out == table
    assert "starts" not in alignmask_.err
    # Another grid of the same folder shares what the two have in common.
    other = ablate_arguments(
        workshop, tmp_path, "--seeds", "0", "--only", "no_aql", "full", grid="table3"
    )
    assert alignmask_(*other) == 0
    assert "starts" not in alignmask_.err


def test_ablate_says_what_runs_elsewhere(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    arguments = ablate_arguments(workshop, tmp_path, "--seeds", "0", "--only", "no_aql")
    with Claims(tmp_path / "grid" / "claims").take("no_aql-seed0"):
        assert alignmask_(*arguments) == 0
    assert "still running elsewhere: no_aql-seed0" in alignmask_.err
    assert "| 0/1 |" in alignmask_.out


def test_ablate_reports_failed_runs(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    arguments = ablate_arguments(workshop, tmp_path, "--seeds", "0", "--only", "no_aql", "full")
    broken = [*arguments, "--loss.target-score-share", "1"]
    assert alignmask_(*broken) == 1
    assert "2 of 2 runs failed (--retry tries them again)" in alignmask_.err
    assert (
        "no_aql-seed0: ValueError: loss.target_score_share: expected a number in [0, 1), got 1.0"
        in alignmask_.err
    )
    assert alignmask_(*arguments) == 1
    assert "starts" not in alignmask_.err
    assert alignmask_(*arguments, "--retry") == 0
    assert alignmask_.err.count("done") == 2
    assert "holds a run with other settings" in alignmask_.complaint(*broken)


def test_ablate_mistakes(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unknown grid 'table5': expected one of table3, table4" in alignmask_.complaint(
        "ablate", "table5", "r50_12ep"
    )
    assert "unknown recipe 'r50'" in alignmask_.complaint("ablate", "table3", "r50")
    text = alignmask_.complaint(
        *ablate_arguments(workshop, tmp_path, "--model.num-classes", "3", "--dry-run")
    )
    assert "has 6 categories, but model.num_classes is 3" in text
    text = alignmask_.complaint(*ablate_arguments(workshop, tmp_path, "--only", "fall"))
    assert "unknown fall: expected some of softmax_no_aql, no_aql, full" in text
    text = alignmask_.complaint("ablate", "table3", "r50_12ep", "--out", tmp_path)
    assert "instances_train2017.json: cannot be read" in text
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert "start one process per GPU" in alignmask_.complaint(
            *ablate_arguments(workshop, tmp_path)
        )
    assert list(tmp_path.iterdir()) == []
    assert alignmask_("ablate") == 0
    assert "table4      Table 4" in alignmask_.out
    assert alignmask_("ablate", "table4", "r50_12ep", "--help") == 0
    assert "--softmax-class-weight" in alignmask_.out
