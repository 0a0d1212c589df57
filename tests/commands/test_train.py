"""`alignmask train`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import alignmask
from alignmask import checkpoint
from alignmask.cli import USER_ERROR
from alignmask.config import Config
from alignmask.recipes import shapes_tiny
from tests.commands.terminal import Terminal, train_arguments


def test_train_leaves_a_run(workshop: Path) -> None:
    run = workshop / "run"
    for name in (
        "config.json",
        "metrics.jsonl",
        "results.json",
        "evaluation.json",
        "best/model.safetensors",
    ):
        assert (run / name).is_file(), name
    config = checkpoint.load_config(checkpoint.resolve(run))
    assert (config.name, config.out, config.train.iterations) == ("run", workshop, 3)
    assert (config.model.backbone.name, config.model.backbone.pretrained) == ("resnet10t", False)
    assert config.train.learning_rate == shapes_tiny().train.learning_rate
    assert [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [1, 2, 3, 3]


def test_train_continues(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    assert alignmask_(*train_arguments(tmp_path, iterations=1)) == 0
    assert alignmask_.out == f"run: {tmp_path / 'run'}\n"
    assert alignmask_(*train_arguments(tmp_path, iterations=2)) == 0
    assert "continues at iteration 1" in alignmask_.err
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 1, 2, 2]
    assert "--no-resume" in alignmask_.complaint(*train_arguments(tmp_path, "--loss.points", "33"))
    assert (
        alignmask_(*train_arguments(tmp_path, "--no-resume", "--loss.points", "33", iterations=1))
        == 0
    )
    assert len(list(tmp_path.glob("run*"))) == 2


def test_train_dry_run_keeps_nothing(workshop: Path, alignmask_: Terminal) -> None:
    before = sorted(workshop.iterdir())
    assert alignmask_(*train_arguments(workshop, "--dry-run", name="dry")) == 0
    assert "step 3: " in alignmask_.out
    assert "peak memory: " in alignmask_.out
    assert sorted(workshop.iterdir()) == before


def test_train_without_aligned_queries(workshop: Path, alignmask_: Terminal) -> None:
    assert (
        alignmask_(*train_arguments(workshop, "--dry-run", "--without", "model.aligned-queries"))
        == 0
    )
    assert "aligned_dice 0 " in alignmask_.out.replace("\n", " ")
    text = alignmask_.complaint(*train_arguments(workshop, "--dry-run", "--without", "data.shapes"))
    assert (
        "data.train_images, data.train_annotations, data.val_images, data.val_annotations: not set"
        in text
    )


def test_train_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    assert "unknown recipe 'shapes': expected one of r50_50ep" in alignmask_.complaint(
        "train", "shapes"
    )
    text = alignmask_.complaint(
        *train_arguments(workshop, "--model.num-classes", "80", name="other")
    )
    assert "--model.num-classes 6" in text
    text = alignmask_.complaint("train", "r50_50ep", "--out", tmp_path)
    assert "datasets/coco/annotations/instances_train2017.json: cannot be read" in text
    text = alignmask_.complaint(*train_arguments(workshop, "--data.crop", "65", name="other"))
    assert "data.crop: expected a positive multiple of 32, got 65" in text
    assert not (workshop / "other").exists()


def test_unknown_options_are_named(alignmask_: Terminal) -> None:
    for arguments in (
        ("eval", "--nope"),
        ("train", "shapes_tiny", "--train.iteration", "5"),
        ("demo", "--minutes", "x"),
    ):
        assert alignmask_(*arguments) == 2
        assert alignmask_.out == ""
        assert arguments[-2 if arguments[0] != "eval" else -1] in alignmask_.err


def test_ctrl_c_in_training_saves_and_exits_with_130(
    alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignmask.training.trainer import Trainer

    step = Trainer.train_step

    def interrupted(self: Trainer, batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert alignmask_(*train_arguments(tmp_path, iterations=100)) == 130
    assert (
        "alignmask: stopped after iteration 1; the same command continues the run" in alignmask_.err
    )
    assert checkpoint.latest(tmp_path / "run").name == "step_0000001"


def test_a_folder_of_yolo_labels_is_enough(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    """Trained on and evaluated on without a conversion: the same images as those of the COCO
    files from which it was made. (Its instances are not quite: holes are filled.)"""
    shapes, root = workshop / "shapes", tmp_path / "yolo"
    for split in ("train", "val"):
        annotations = shapes / f"instances_{split}.json"
        assert alignmask_("data", "to-yolo", annotations, "--out", tmp_path / split) == 0
        (root / split).mkdir(parents=True)
        (tmp_path / split / "labels").rename(root / split / "labels")
        (root / split / "images").symlink_to(shapes / split)
    names = (tmp_path / "train" / "data.yaml").read_text().partition("\n")[2]
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../val/images\n{names}")
    arguments = train_arguments(tmp_path / "runs", "--dataset", str(root), iterations=1)
    assert alignmask_(*arguments) == 0
    assert f"training: {root / 'train' / 'labels'}" in alignmask_.out
    run = tmp_path / "runs" / "run"
    assert alignmask_("eval", run, "--workers", 0, "--out", tmp_path / "own") == 0
    options = ("--data-images", shapes / "val", "--annotations", shapes / "instances_val.json")
    assert alignmask_("eval", run, "--workers", 0, "--out", tmp_path / "coco", *options) == 0
    own, coco = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("own", "coco")
    )
    assert len(own) > 1
    assert [e["segmentation"] for e in own] == [e["segmentation"] for e in coco]
    assert [entry["category_id"] for entry in own] == [entry["category_id"] for entry in coco]


def test_a_folder_is_enough(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    """The paths and the number of classes are found, and said."""
    arguments = ["--dataset", workshop / "shapes", "--dry-run"]
    assert alignmask_(*train_arguments(tmp_path, *arguments, name="found")) == 0
    assert f"training: {workshop / 'shapes' / 'instances_train.json'}" in alignmask_.out
    assert "6 classes: circle" in alignmask_.out
    assert "step 3: " in alignmask_.out
    others = ["--model.num-classes", "3", "--data.train-images", tmp_path]
    text = alignmask_.complaint(*train_arguments(tmp_path, *arguments, *others, name="found"))
    assert "--dataset contradicts --data.train-images, --model.num-classes" in text
    text = alignmask_.complaint(*train_arguments(tmp_path, "--dataset", tmp_path, "--dry-run"))
    assert "expected one COCO annotation file with 'train' in its name, found none" in text


def test_train_takes_a_batch_size_that_is_to_be_found(
    alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Config] = []
    monkeypatch.setattr(alignmask, "train", lambda config, **_: taken.append(config))
    assert alignmask_(*train_arguments(tmp_path, "--train.batch-size", "auto")) == 0
    assert [config.train.batch_size for config in taken] == ["auto"]
    assert alignmask_(*train_arguments(tmp_path, "--train.batch-size", "large")) == USER_ERROR
    assert "--train.batch-size" in alignmask_.err
