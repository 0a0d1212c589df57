"""Several models side by side: measured, named, printed and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignmask.analysis.compare import analysis_table, slug, unique_names, write_analysis
from alignmask.analysis.measure import analyze_model
from alignmask.evaluation.metrics import evaluate_results
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.analysis.pages import NASTY, analyses, pictured, square_world
from tests.evaluation.test_alignment import printed
from tests.evaluation.worlds import World, box_mask, small_world, write


def test_the_numbers_are_the_evaluations(tmp_path: Path) -> None:
    annotations, results = write(small_world(images=20), tmp_path)
    ground_truth = load_ground_truth(annotations)
    model = analyze_model("m", ground_truth, load_results(results, ground_truth))
    assert model.metrics == evaluate_results(annotations, results, "pycocotools")
    rescored = [
        {**entry, "score": iou}
        for entry, iou in zip(
            json.loads(results.read_text()), model.pairs.iou_same_class_N.tolist(), strict=True
        )
    ]
    assert model.by_iou == evaluate_results(annotations, rescored, "pycocotools")
    written = json.loads(json.dumps(model.as_dict()))
    assert written["metrics"]["AP"] == model.metrics.AP
    assert [top["fraction"] for top in written["alignment"]["top"]] == [0.02, 0.1]


def test_head_room(tmp_path: Path) -> None:
    """One object has a good mask and a good duplicate, the other a fair mask; the confident ones
    are wrong. Ranked by IoU, the duplicate comes before the fair mask; a perfect ranking has it
    last."""
    world = World({1: (100, 100)}, {1: "a"})
    for left in (0, 50):
        world.annotate(1, 1, box_mask((100, 100), 0, left, 40, left + 40))
    world.predict(1, 1, box_mask((100, 100), 0, 0, 40, 39), 0.5)
    world.predict(1, 1, box_mask((100, 100), 0, 0, 40, 38), 0.4)
    world.predict(1, 1, box_mask((100, 100), 0, 50, 37, 90), 0.3)
    for score in (0.9, 0.8, 0.7):
        world.predict(1, 1, box_mask((100, 100), 90, 90, 99, 99), score)
    (model,), _ = analyses(world, tmp_path)
    assert model.metrics.AP50 < model.by_iou.AP50 < model.oracle.AP50 == pytest.approx(1)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a"], ["a"]),
        (["x/results.json"], ["results.json"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["a/results.json", "b/results.json"], ["a", "b"]),
        (["runs/a", "b/results.json"], ["a", "results.json"]),
        (
            ["runs/a", "b/results.json", "c/results.json"],
            ["runs/a", "b/results.json", "c/results.json"],
        ),
        (["x/a/r.json", "y/a/r.json", "y/b/r.json"], ["x/a", "y/a", "y/b"]),
        ([], []),
    ],
)
def test_names_tell_models_apart(paths: list[str], names: list[str]) -> None:
    assert unique_names([Path(path) for path in paths]) == names


def test_a_model_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runs/\.\./runs/a: named twice"):
        unique_names([Path("runs/a"), Path("runs/../runs/a")])


def test_slugs_are_file_names() -> None:
    assert slug("runs/a b:c.json") == "runs_a_b_c.json"
    assert all("/" not in slug(name) and len(slug(100 * name)) <= 60 for name in NASTY)


@pytest.mark.parametrize("images", [True, False])
def test_everything_is_written(tmp_path: Path, images: bool) -> None:
    world = square_world()
    models, ground_truth = analyses(world, tmp_path, ("first", "odd $name_ <b>"))
    dataset = pictured(world, tmp_path) if images else None
    files = write_analysis(models, ground_truth, dataset, tmp_path / "out")
    assert {file.name for file in files.values()} == {
        file.name for file in (tmp_path / "out").iterdir()
    }
    written = json.loads(files["numbers"].read_text())["models"]
    assert [model["name"] for model in written] == ["first", "odd $name_ <b>"]
    for inversion in written[0]["inversions"]:
        assert inversion["high_score"] > inversion["low_score"]
        assert inversion["high_iou_any_class"] < inversion["low_iou_any_class"]
    assert len(written[0]["inversions"]) == 2
    pngs = [file for file in files.values() if file.suffix == ".png"]
    assert len(pngs) == 4
    for file in pngs:
        assert len(np.unique(np.asarray(Image.open(file).convert("L")))) > 20
    assert files["page"].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_nothing_predicted(tmp_path: Path) -> None:
    world = World({1: (20, 20)}, {1: "a"})
    world.annotate(1, 1, box_mask((20, 20), 0, 0, 5, 5))
    models, ground_truth = analyses(world, tmp_path, ("empty", "too"))
    assert models[0].metrics.AP == models[0].oracle.AP == 0
    write_analysis(models, ground_truth, None, tmp_path / "out")
    assert "-" in printed(analysis_table(models))[-1]


def test_table(tmp_path: Path) -> None:
    models, _ = analyses(square_world(), tmp_path, ("first", "second one"))
    lines = printed(analysis_table(models))
    assert max(map(len, lines)) <= 80
    first = models[0].metrics
    row = next(line.split() for line in lines if line.split()[0] == "first")
    head_room = 100 * (models[0].oracle.AP - first.AP)
    values = [
        100 * value
        for value in (first.AP, first.AP50, first.AP75, models[0].by_iou.AP, models[0].oracle.AP)
    ]
    assert row == ["first", *(f"{value:.1f}" for value in values), f"{head_room:+.1f}"]
    top = models[0].alignment.top[1]
    # Of any class.
    row = [line.split() for line in lines if line.split()[:3] == ["first", "10", "%"]][1]
    values = [top.pcc_any_class, top.spearman_any_class, top.calibration_error_any_class]
    values += [top.mean_score, top.mean_iou_any_class]
    assert row == [
        "first",
        "10",
        "%",
        "30",
        *(f"{value:.3f}" for value in values if value is not None),
    ]
