"""More objects in an image than count officially: what is said of it, and another limit."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import alignmask
from alignmask.analysis.compare import analysis_table
from alignmask.analysis.measure import analyze_model
from alignmask.evaluation.evaluate import Evaluation, evaluate_file
from alignmask.evaluation.metrics import NUMBERS, evaluate_results, limit_note
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.evaluation.test_tables import printed
from tests.evaluation.worlds import World, box_mask, write

SIZE = (60, 75)
ENGINES = ["hotcoco", "pycocotools"]


def crowded(objects: int = 150) -> World:
    """An image of 4 x 4 boxes of class 1, each found; one of class 2; a crowd; an empty
    image."""
    world = World({1: SIZE, 2: SIZE}, {1: "cell", 2: "other"})
    for n in range(objects):
        top, left = 5 * (n // 15), 5 * (n % 15)
        mask_HW = box_mask(SIZE, top, left, top + 4, left + 4)
        world.annotate(1, 1, mask_HW)
        world.predict(1, 1, mask_HW, 1 - n / 1000)
    world.annotate(1, 2, box_mask(SIZE, 55, 0, 59, 70))
    world.predict(1, 2, box_mask(SIZE, 55, 0, 59, 51), 0.5)
    world.annotate(1, 2, box_mask(SIZE, 0, 0, 30, 30), crowd=True)
    return world


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(crowded(), tmp_path)


def official(annotations: Path, results: Path, limit: int) -> np.ndarray:
    """AP, AP50, AP75, AR1, AR10 and AR by the official tool's arrays, indexed by name. Its own
    summary knows limit 100 alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        tool = COCOeval(truth, truth.loadRes(str(results)), "segm")
        tool.params.maxDets = [1, 10, limit]
        tool.evaluate()
        tool.accumulate()
    precision, recall = tool.eval["precision"], tool.eval["recall"]
    at = {name: n for n, name in enumerate(tool.params.areaRngLbl)}
    iou = [round(float(value), 2) for value in tool.params.iouThrs].index
    parts = {"AP": precision[:, :, :, at["all"], 2]}
    parts["AP50"], parts["AP75"] = (parts["AP"][iou(value)] for value in (0.5, 0.75))
    for letter, area in (("s", "small"), ("m", "medium"), ("l", "large")):
        parts[f"AP{letter}"] = precision[:, :, :, at[area], 2]
        parts[f"AR{letter}"] = recall[:, :, at[area], 2]
    for n, name in enumerate(("AR1", "AR10", "AR100")):
        parts[name] = recall[:, :, at["all"], n]
    return np.array(
        [parts[n][parts[n] > -1].mean() if (parts[n] > -1).any() else -1.0 for n in NUMBERS]
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("limit", [10, 50, 100, 140, 1000])
def test_any_limit_equals_the_official_tool(
    files: tuple[Path, Path], engine: Any, limit: int
) -> None:
    metrics = evaluate_results(*files, engine, max_detections=limit)
    numbers = np.array(list(metrics.numbers().values()))
    np.testing.assert_allclose(numbers, official(*files, limit), rtol=0, atol=1e-12)
    assert metrics.max_detections == limit


@pytest.mark.parametrize("engine", ENGINES)
def test_perfect_detections(files: tuple[Path, Path], engine: Any) -> None:
    """100 of 150 objects: precision 1 up to a recall of 0.66, that is at 67 of 101 recalls."""
    cells = [
        evaluate_results(*files, engine, **limit).per_category["cell"]
        for limit in ({}, {"max_detections": 100}, {"max_detections": 1000})
    ]
    assert cells == pytest.approx([67 / 101, 67 / 101, 1.0])


@pytest.mark.parametrize("limit", [9, 0, -1])
def test_impossible_limits_are_refused(
    files: tuple[Path, Path], limit: int, tmp_path: Path
) -> None:
    annotations, results = files
    words = f"max_detections: expected 10 or more, got {limit}"
    with pytest.raises(ValueError, match=words):
        evaluate_results(*files, max_detections=limit)
    with pytest.raises(ValueError, match=words):
        alignmask.evaluate("nowhere", max_detections=limit)
    with pytest.raises(ValueError, match=words):
        alignmask.analyze([results], annotations=annotations, max_detections=limit)


NOTE = (
    "At most 100 predictions of a class count in an image, which limits AP, F1 and the errors: 1 image has "
    "more objects, 1 image has more predictions of one class. --max-detections measures with "
    "another limit."
)


def text(evaluation: Evaluation) -> str:
    lines = printed(evaluation.table())
    assert max(map(len, lines)) <= 80
    return " ".join(" ".join(lines).split())


def test_the_limit_is_told(files: tuple[Path, Path]) -> None:
    found = evaluate_file(*files)
    assert found.as_dict()["max_detections"] == 100
    assert found.as_dict()["images_over_limit"] == {"objects": 1, "predictions": 1}
    said = text(found)
    assert NOTE in said
    assert "; at most" not in said
    assert said.index("AR100") < said.index(NOTE) < said.index("the most confident")
    higher = evaluate_file(*files, max_detections=1000)
    assert higher.as_dict()["max_detections"] == 1000
    assert higher.as_dict()["images_over_limit"] == {"objects": 0, "predictions": 0}
    said = text(higher)
    assert "predictions; at most 1000 a class and image" in said
    assert "limits AP" not in said
    assert "AR1000" in said
    assert "AR100 " not in said
    title = printed(higher.class_table())[0]
    assert title == "per class (%); at most 1000 a class and image"


def test_all_that_is_measured_follows_the_limit(files: tuple[Path, Path]) -> None:
    """Of 151 objects, 151 are found, all but one by a perfect mask."""
    for limit, counted in ((100, 100), (1000, 150)):
        found = evaluate_file(*files, max_detections=limit, errors=True)
        cell = found.classes[0]
        assert (cell.name, cell.instances, cell.threshold) == (
            "cell",
            150,
            1 - (counted - 1) / 1000,
        )
        assert cell.F1 == pytest.approx(2 * counted / (counted + 150))
        assert found.confusion.counts[0] == (counted, 0, 150 - counted)
        assert found.errors.counts["missed"] == 150 - counted
        assert found.errors.AP50 == pytest.approx(found.metrics["score"].AP50)
        truth = load_ground_truth(files[0])
        model = analyze_model("m", truth, load_results(files[1], truth), max_detections=limit)
        assert model.errors == found.errors
        assert model.calibration == found.calibration


def test_what_counts_as_more(tmp_path: Path) -> None:
    """Objects and predictions of one class in one image; crowds are none."""
    world = crowded(objects=100)
    world.predict(1, 2, box_mask(SIZE, 0, 0, 1, 1), 0.1)
    world.annotate(1, 1, box_mask(SIZE, 50, 0, 51, 1), crowd=True)
    truth = load_ground_truth(world.write(tmp_path))
    assert evaluate_file(truth, world.results).images_over_limit == {"objects": 0, "predictions": 0}
    world.predict(1, 1, box_mask(SIZE, 0, 0, 1, 1), 0.1)
    found = evaluate_file(truth, world.results)
    assert found.images_over_limit == {"objects": 0, "predictions": 1}
    assert "limits AP, F1 and the errors: 1 image has more predictions of one class." in text(found)
    assert "limits AP, F1 and the errors: 3 images have more objects of" in limit_note(
        {"objects": 3}, 100
    )
    assert limit_note({"objects": 0, "predictions": 0}, 100) == ""


def test_after_suppression(tmp_path: Path) -> None:
    world = crowded(objects=99)
    for _ in range(2):
        world.predict(1, 1, box_mask(SIZE, 0, 0, 4, 4), 0.1)
    files = write(world, tmp_path)
    assert evaluate_file(*files).images_over_limit["predictions"] == 1
    assert evaluate_file(*files, suppression="hard").images_over_limit["predictions"] == 0


def test_the_page_tells_the_limit(files: tuple[Path, Path], tmp_path: Path) -> None:
    annotations, results = files
    pages = {}
    for limit in (100, 1000):
        out = tmp_path / str(limit)
        alignmask.analyze(
            {"m": results}, annotations=annotations, out=out, inversions=0, max_detections=limit
        )
        pages[limit] = (out / "report.html").read_text(encoding="utf-8")
    assert f'<p class="note">m: {NOTE}</p>' in pages[100]
    assert "limits AP" not in pages[1000]
    assert "<th>AR100</th>" in pages[100]
    assert "<th>AR1000</th>" in pages[1000]


def test_of_the_package_and_of_an_analysis(files: tuple[Path, Path]) -> None:
    annotations, results = files
    high = alignmask.evaluate(results, annotations=annotations, max_detections=1000)
    assert high.metrics["score"].per_category["cell"] == pytest.approx(1.0)
    truth = load_ground_truth(annotations)
    models = {
        limit: analyze_model(f"m{limit}", truth, load_results(results, truth), max_detections=limit)
        for limit in (100, 1000)
    }
    for limit, model in models.items():
        expected = evaluate_results(*files, max_detections=limit).AP
        assert [model.metrics.AP, model.by_iou.AP, model.oracle.AP] == pytest.approx([expected] * 3)
        assert model.as_dict()["max_detections"] == limit
    assert models[100].as_dict()["images_over_limit"] == {"objects": 1, "predictions": 1}
    said = " ".join(" ".join(printed(analysis_table([models[100]]))).split())
    assert f"m100: {NOTE}" in said
    said = " ".join(" ".join(printed(analysis_table([models[1000]]))).split())
    assert "by score and by IoU; at most 1000 a class and image" in said
    assert "limits AP" not in said
