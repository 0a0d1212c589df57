"""Everything that an evaluation and an analysis have beside AP: duplicates, forecasts, and
suppression for all alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from rich.console import Console

from alignmask.analysis.compare import analysis_table
from alignmask.analysis.measure import analyze_model
from alignmask.evaluation.calibration import measure
from alignmask.evaluation.duplicates import Duplicates, suppress_duplicates
from alignmask.evaluation.evaluate import (
    Evaluation,
    evaluate_file,
    evaluate_model,
)
from alignmask.evaluation.matches import match
from alignmask.evaluation.predictions import predict_dataset
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.evaluation.worlds import TableModel, World, box_mask, dataset_of, small_world, write

SIZE = (20, 30)


@pytest.fixture
def world() -> World:
    """An object found twice, one of another class in its place, and two false alarms."""
    world = World({1: SIZE, 2: SIZE}, {3: "a", 7: "b"})
    world.annotate(1, 3, box_mask(SIZE, 0, 0, 10, 10))
    world.predict(1, 3, box_mask(SIZE, 0, 0, 10, 9), 0.9)
    world.predict(1, 3, box_mask(SIZE, 0, 0, 9, 10), 0.6)
    world.predict(1, 7, box_mask(SIZE, 0, 0, 10, 10), 0.5)
    world.predict(2, 3, box_mask(SIZE, 12, 12, 18, 18), 0.4)
    world.predict(2, 3, box_mask(SIZE, 12, 12, 17, 18), 0.3)
    return world


def printed(evaluation: Evaluation) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(evaluation.table())
    return capture.get()


def test_of_a_file(world: World, tmp_path: Path) -> None:
    files = write(world, tmp_path)
    found = evaluate_file(*files)
    assert found.duplicates == {
        "score": {
            "score >= 0.5": Duplicates(3, 1),
            "top 2 %": Duplicates(4, 1),
            "top 10 %": Duplicates(5, 2),
        }
    }
    assert found.calibration == measure(match(*files))
    stored = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert stored["modes"]["score"]["duplicates"]["top 2 %"] == {
        "predictions": 4,
        "duplicates": 1,
        "share": 0.25,
    }
    # Class 7 has no object.
    assert stored["calibration"]["LaACE0"] == pytest.approx((0.0 + 0.6 + 0.4 + 0.3) / 4)
    assert (stored["suppression"], stored["suppression_iou"]) == ("off", None)
    text = printed(found)
    assert "33.3 (3)" in text
    assert f"{found.calibration['oLRP']:.3f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_without_predictions_nothing_is_a_duplicate(world: World, tmp_path: Path) -> None:
    world.results.clear()
    found = evaluate_file(*write(world, tmp_path))
    assert found.duplicates["score"]["top 2 %"].share is None
    assert found.calibration["LaECE0"] is None
    assert "- (0)" in printed(found)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_suppression_comes_before_everything(world: World, tmp_path: Path, mode: str) -> None:
    annotations, results = write(world, tmp_path)
    ground_truth = load_ground_truth(annotations)
    kept = suppress_duplicates(load_results(results, ground_truth), mode, 0.6)
    found = evaluate_file(annotations, results, suppression=mode, suppression_iou=0.6)
    expected = evaluate_file(ground_truth, kept)
    assert (found.metrics, found.alignment) == (expected.metrics, expected.alignment)
    assert (found.duplicates, found.calibration) == (expected.duplicates, expected.calibration)
    assert (found.predictions, found.left_out) == (
        (3, {"duplicates": 2}) if mode == "hard" else (5, {})
    )
    assert ("2 removed by suppression" in printed(found)) is (mode == "hard")
    assert "left out" not in printed(found)
    assert found.as_dict()["suppression_iou"] == 0.6
    assert (
        evaluate_file(annotations, results, suppression=mode, suppression_iou=0.99).predictions == 5
    )


@pytest.mark.parametrize("mode", ["off", "hard"])
def test_of_a_model_in_every_score_mode(tmp_path: Path, mode: str) -> None:
    """Which of two masks is the second one depends on the score."""
    world = small_world(2)
    rng = np.random.default_rng(0)
    for result in list(world.results):
        mask_HW = np.roll(mask_utils.decode(result["segmentation"]).astype(bool), 1, axis=0)
        world.predict(result["image_id"], result["category_id"], mask_HW, float(rng.random()))
    model, dataset = TableModel(world), dataset_of(world, tmp_path)
    found = evaluate_model(
        model, dataset, device="cpu", batch_size=2, workers=0, out=tmp_path, suppression=mode
    )
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(world.results)
    for score in found.metrics:
        model.config.score = score
        evaluate_model(
            TableModel(world, score), dataset, device="cpu", batch_size=2, workers=0, out=tmp_path
        )
        alone = evaluate_file(dataset.annotations, tmp_path / "results.json", suppression=mode)
        assert found.metrics[score] == alone.metrics["score"]
        assert found.alignment[score] == alone.alignment["score"]
        assert found.duplicates[score] == alone.duplicates["score"]
        if score == "class":
            assert found.calibration == alone.calibration
            assert (found.predictions, found.left_out) == (alone.predictions, alone.left_out)
    counts = {score: row["top 10 %"].duplicates for score, row in found.duplicates.items()}
    assert all(counts.values()) if mode == "off" else not any(counts.values())


def test_of_an_analysis(world: World, tmp_path: Path) -> None:
    annotations, results = write(world, tmp_path)
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth)
    plain = analyze_model("plain", ground_truth, checked)
    expected = evaluate_file(annotations, results)
    assert (plain.duplicates, plain.calibration) == (
        expected.duplicates["score"],
        expected.calibration,
    )
    stored = json.loads(json.dumps(plain.as_dict(), allow_nan=False))
    assert stored["duplicates"]["score >= 0.5"] == {
        "predictions": 3,
        "duplicates": 1,
        "share": pytest.approx(1 / 3),
    }
    assert stored["calibration"] == expected.calibration
    without = analyze_model("without", ground_truth, suppress_duplicates(checked, "hard"))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(analysis_table([plain, without]))
    lines = " ".join(capture.get().split())
    assert "removed by suppression: 2" in lines
    assert "33.3 (3)" in lines
    assert f"{plain.calibration['LaECE0']:.3f}" in lines


@pytest.mark.parametrize("batch_size", [1, 3])
def test_predicting_alone_gives_what_an_evaluation_writes(tmp_path: Path, batch_size: int) -> None:
    world = small_world()
    model, dataset = TableModel(world), dataset_of(world, tmp_path)
    evaluate_model(
        model, dataset, device="cpu", batch_size=1, workers=0, out=tmp_path / "evaluated"
    )
    found = predict_dataset(model, dataset, device="cpu", batch_size=batch_size, workers=0)
    assert found == json.loads((tmp_path / "evaluated" / "results.json").read_text())
