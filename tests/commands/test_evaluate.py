"""`alignmask eval`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alignmask import checkpoint
from alignmask.evaluation.evaluate import evaluate_file
from tests.commands.terminal import Terminal
from tests.evaluation.worlds import rle, small_world, write


def numbers(text: str, row: str) -> list[str]:
    """What stands after the first words of the first line that begins with them."""
    line = next(
        line for line in text.splitlines() if line.split()[: len(row.split())] == row.split()
    )
    return line.split()[len(row.split()) :]


def test_eval_of_a_checkpoint_repeats_the_runs_own(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    run = workshop / "run"
    assert (
        alignmask_(
            "eval",
            run,
            "--workers",
            0,
            "--batch-size",
            2,
            "--out",
            tmp_path / "new",
            "--per-class",
            "on",
        )
        == 0
    )
    assert "mask AP (%), 3 images" in alignmask_.out
    for words in ("class*mask", "PCC*", "triangle"):
        assert words in alignmask_.out
    for name in ("evaluation.json", "results.json"):
        assert (tmp_path / "new" / name).read_text() == (run / name).read_text()
    assert (
        alignmask_("eval", checkpoint.latest(run), "--workers", 0, "--engine", "pycocotools") == 0
    )


def test_eval_of_other_data(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    shapes = workshop / "shapes"
    files = ("--data-images", shapes / "train", "--annotations", shapes / "instances_train.json")
    more = ("--suppression", "soft", "--suppression-iou", 0.3, "--out", tmp_path)
    more += ("--max-detections", 11)
    assert alignmask_("eval", workshop / "run", "--workers", 0, *files, *more) == 0
    assert "mask AP (%), 8 images" in alignmask_.out
    assert "at most 11 a class and image" in alignmask_.out
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["suppression"], written["suppression_iou"]) == ("soft", 0.3)
    assert written["max_detections"] == 11


def test_eval_of_a_results_file(alignmask_: Terminal, tmp_path: Path) -> None:
    world = small_world()
    annotations, results = write(world, tmp_path)
    assert (
        alignmask_("eval", "--results", results, "--annotations", annotations, "--out", tmp_path)
        == 0
    )
    written = json.loads((tmp_path / "evaluation.json").read_text())
    metrics = written["modes"]["score"]["metrics"]
    assert numbers(alignmask_.out, "score 2 %")[0] == "10"
    dogs = sum(a["category_id"] == 11 for a in world.annotations)
    assert numbers(alignmask_.out, "dog")[3] == str(dogs)
    assert (tmp_path / "per_class.csv").is_file()
    assert numbers(alignmask_.out.split("APl")[1], "score")[0] == f"{100 * metrics['AP']:.1f}"
    assert max(map(len, alignmask_.out.splitlines())) <= 80
    command = ("eval", "--results", results, "--annotations", annotations)
    assert alignmask_(*command, "--per-class", "off", "--errors") == 0
    assert "lost to each kind of error" in alignmask_.out
    assert "per class" not in alignmask_.out


def test_what_does_not_fit_is_listed_or_left_out(alignmask_: Terminal, tmp_path: Path) -> None:
    world = small_world(seed=3, images=12)
    good = world.results[0]
    wrong = [
        {**good, "category_id": 90}, {**good, "category_id": 0}, {**good, "score": None},
        {**good, "segmentation": rle(np.ones((60, 40), bool))},
    ]  # fmt: skip
    entries = [{**good, "image_id": 123456}, *world.results, *wrong]
    annotations, results = write(world, tmp_path)
    results.write_text(json.dumps(entries))
    arguments = ("eval", "--results", results, "--annotations", annotations)
    assert alignmask_(*arguments) == 2
    first, *lists = alignmask_.err.splitlines()
    counts = "1 of an unknown image, 2 of an unknown category, 1 with a score that is not a finite number, 1 whose mask has"
    assert first.startswith(
        f"alignmask: {results}: of {len(entries)} entries: {counts} another size than the image"
    )
    assert lists[0].endswith(
        ": entry 0 (image 123456) (the annotation file's ids are 7, 17, ..., 117)"
    )
    last = len(entries) - 4
    assert (
        f"entry {last} (image 7): category 90; entry {last + 1} (image 7): category 0 (the "
        "annotation file's" in lists[1]
    )
    assert alignmask_(*arguments, "--ignore-unknown", "--out", tmp_path / "out") == 0
    assert f"left out {counts}" in alignmask_.err
    assert f"{len(world.results)} predictions (5 left out)" in alignmask_.out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert sum(written["left_out"].values()) == 5
    assert (
        written["modes"]["score"]["metrics"]["AP"] == evaluate_file(annotations, world.results).AP
    )


def test_warnings_are_one_line(alignmask_: Terminal, tmp_path: Path) -> None:
    world = small_world()
    world.annotate(7, 3, np.zeros((40, 60), bool), segmentation=[[1, 1, 2, 2]])
    annotations, results = write(world, tmp_path)
    entries = [*world.results, {**world.results[0], "image_id": 1}]
    results.write_text(json.dumps(entries))
    arguments = ("eval", "--results", results, "--annotations", annotations)
    assert alignmask_(*arguments, "--ignore-unknown") == 0
    lines = [line for line in alignmask_.err.splitlines() if line]
    assert all(line.startswith("alignmask: warning: ") for line in lines), alignmask_.err
    assert any(line.endswith("results.json: left out 1 of an unknown image") for line in lines)


def test_eval_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    run, shapes = workshop / "run", workshop / "shapes"
    complaint = alignmask_.complaint
    assert "give either a CHECKPOINT or --results FILE" in complaint("eval")
    assert "give either a CHECKPOINT or --results FILE" in complaint(
        "eval", run, "--results", results
    )
    assert "give --annotations FILE" in complaint("eval", "--results", results)
    assert "or neither of them" in complaint("eval", run, "--annotations", annotations)
    assert f"{tmp_path}/none.json: cannot be read" in complaint(
        "eval", "--results", tmp_path / "none.json", "--annotations", annotations
    )
    assert f"{tmp_path}/none.json: cannot be read" in complaint(
        "eval", "--results", results, "--annotations", tmp_path / "none.json"
    )
    results.write_text("[{")
    assert "results.json: malformed JSON" in complaint(
        "eval", "--results", results, "--annotations", annotations
    )
    assert "no such file or folder" in complaint("eval", tmp_path / "nowhere")
    assert "neither a checkpoint nor a run" in complaint("eval", shapes)
    assert "device 'gpu' cannot be used" in complaint("eval", run, "--device", "gpu")
    write(small_world(), tmp_path)
    small_world().write(tmp_path, images=True)
    text = complaint("eval", run, "--data-images", tmp_path, "--annotations", annotations)
    assert (
        "its 2 categories (cat, dog) are not the 6 that the checkpoint was trained on (circle, "
        "square, " in text
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of a missing GPU")
def test_a_gpu_that_is_not_there(workshop: Path, alignmask_: Terminal) -> None:
    assert "device 'cuda' cannot be used: " in alignmask_.complaint(
        "eval", workshop / "run", "--device", "cuda"
    )


def test_what_something_else_wrote_is_not_overwritten(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    annotations, results = write(small_world(), tmp_path)
    for name in ("evaluation.json", "results.json"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("[]")
        said = alignmask_.complaint("eval", workshop / "run", "--out", out)
        assert said.startswith(
            f"{out / name}: it exists, and {out}/evaluation.json does not show that"
        )
        assert (out / name).read_text() == "[]"
    command = ("eval", "--results", results, "--annotations", annotations, "--out", results.parent)
    for _ in range(2):  # beside the results that it measures, and over its own evaluation
        assert alignmask_(*command) == 0
