"""A run says with what it was trained, and can be trained again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import alignmask
from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.config_files import config_to_dict
from alignmask.training import environment as environments
from alignmask.training import reproduce as reproductions
from alignmask.training.environment import starts
from alignmask.training.reproduce import reproduce
from alignmask.training.trainer import train
from tests.training.runs import config


@pytest.fixture(scope="module")
def run(shapes: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config(shapes, tmp_path_factory.mktemp("runs"), ema=0.5, iterations=3))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_every_start_is_noted(run: Path, shapes: DataConfig, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    train(config(shapes, tmp_path, ema=0.5, iterations=4))
    first, second = starts(copied)
    assert (first["step"], second["step"]) == (0, 3)
    assert (
        first["torch"] == torch.__version__.partition("+")[0] or first["torch"] == torch.__version__
    )
    assert first["alignmask"] == alignmask.__version__
    assert first["threads"] == torch.get_num_threads()
    for part in ("train", "val"):
        path = shapes.shapes.root / f"instances_{part}.json"
        assert first[f"{part}_annotations"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {key for key in first if first[key] != second[key]} <= {"step", "time", "changed"}
    assert (first["changed"], second["changed"]) == ([], ["train.iterations: 3 -> 4"])


def test_a_run_repeated_is_equal_whatever_the_number_of_workers(copied: Path) -> None:
    settings = checkpoint.load_config(copied)
    workers = replace(settings, data=replace(settings.data, workers=2))
    (copied / "config.json").write_text(json.dumps(config_to_dict(workers)))
    found = reproduce(copied)
    assert found.is_equal, found
    assert found.compared == 3  # two lines with losses, one with an evaluation
    assert "equal: 3 lines of metrics.jsonl, and all weights" in str(found)
    assert found.repeated == copied.with_name("run-reproduced")
    assert not found.environment


def rewrite(path: Path, change: Any) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_first_difference_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Path(shutil.copytree(copied, copied.with_name("again")))
    monkeypatch.setattr(reproductions, "train", lambda _: again)
    assert reproduce(copied).is_equal

    weights = checkpoint.latest(again)
    tensors = checkpoint.load_weights(weights, ema=False)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].flatten()[7] += 0.25
    checkpoint.save(weights, checkpoint.load_config(again), tensors, checkpoint.load_meta(weights))
    assert reproduce(copied).difference == (f"step_0000003: the weights {name} are up to 0.25 away")

    def change_ap(lines: list[dict[str, Any]]) -> None:
        lines[-1]["eval"]["modes"]["class"]["metrics"]["AP"] = 0.125

    rewrite(again / "metrics.jsonl", change_ap)
    assert "iteration 3, eval: modes class metrics AP 0.125, before" in str(reproduce(copied))

    def change_loss(lines: list[dict[str, Any]]) -> None:
        lines[0]["it_per_s"], lines[1]["loss"] = 1e9, 77.5

    rewrite(again / "metrics.jsonl", change_loss)
    assert (reproduce(copied).difference or "").startswith("iteration 3, loss: 77.5, before ")


def test_other_versions_and_machines_are_told_apart(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(lines: list[dict[str, Any]]) -> None:
        lines[0].update(torch="2.4.1", threads=64)

    rewrite(copied / "environment.jsonl", older)
    monkeypatch.setattr(reproductions, "train", lambda _: copied)
    now = environments.environment(DataConfig(), torch.device("cpu"))
    found = reproduce(copied)
    assert found.environment == [
        f"version of torch: {now['torch']}, before 2.4.1",
        f"threads: {now['threads']}, before 64",
    ]


def test_what_cannot_be_repeated_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to compare with"):
        reproduce(tmp_path)
    rewrite(copied / "environment.jsonl", lambda lines: lines[0].update(val_annotations="0"))
    with pytest.raises(ValueError, match=r"instances_val\.json is not what the run began with"):
        reproduce(copied)
    settings = checkpoint.load_config(copied)
    timed = replace(settings, train=replace(settings.train, max_minutes=5.0))
    (copied / "config.json").write_text(json.dumps(config_to_dict(timed)))
    with pytest.raises(ValueError, match="followed the clock"):
        reproduce(copied)


def test_a_folder_of_labels_is_known_by_names_and_contents(tmp_path: Path) -> None:
    def noted() -> str:
        data = DataConfig(train_annotations=tmp_path)
        return environments.environment(data, torch.device("cpu"))["train_annotations"]

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("0 0.5")
    seen = [noted()]
    (tmp_path / "deep" / "a.txt").write_text("0 0.6")
    seen.append(noted())
    (tmp_path / "deep" / "a.txt").rename(tmp_path / "deep" / "b.txt")
    seen.append(noted())
    assert len(set(seen)) == 3
    assert noted() == seen[-1]


def test_a_package_that_is_not_in_a_checkout_has_no_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "__file__", str(tmp_path / "environment.py"))
    assert environments._commit() is None
