"""AP of resampled images, against the official tool on data sets in which images occur several
times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from alignmask.evaluation.alignment import score_iou_pairs, top_predictions
from alignmask.evaluation.average_precision import RECALLS, AveragePrecision, _needed
from alignmask.evaluation.calibration import localisation_aware_error
from alignmask.evaluation.duplicates import count_duplicates, rival_pairs
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.matches import match
from alignmask.evaluation.resampled import compared_measures, weighted_pearson
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.evaluation.oracle import official_numbers
from tests.evaluation.test_errors import random_world
from tests.evaluation.test_matches import pixels
from tests.evaluation.worlds import World, box_mask, small_world, write


def doubled_world(seed: int) -> World:
    """Random boxes, crowds, three classes, and second masks; all scores differ."""
    world = random_world(seed)
    rng = np.random.default_rng(seed + 100)  # scores that the world does not have yet
    for a in world.annotations:
        moved = np.roll(pixels(a), rng.integers(-1, 2, 2), axis=(0, 1))
        world.predict(a["image_id"], a["category_id"], moved, float(rng.random()))
    world.results += [{**r, "score": float(rng.random())} for r in world.results[::2]]
    return world


def repeated(world: World, weights: list[int]) -> World:
    """Every image as often as its weight says, as so many images. Scores of the copies of a
    prediction differ a little, so that they come one after another, as they do by weights."""
    copies = World({}, world.categories)
    for (image, size), weight in zip(world.sizes.items(), weights, strict=True):
        for copy in range(weight):
            number = 1000 * copy + image
            copies.sizes[number] = size
            for a in world.annotations:
                if a["image_id"] == image:
                    copies.annotations.append(
                        {**a, "image_id": number, "id": len(copies.annotations) + 1}
                    )
            for r in world.results:
                if r["image_id"] == image:
                    copies.results.append(
                        {**r, "image_id": number, "score": r["score"] - 1e-9 * copy}
                    )
    return copies


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_official_tool_on_resampled_images(tmp_path: Path, seed: int) -> None:
    world = doubled_world(seed)
    annotations, results = write(world, tmp_path)
    ground_truth = load_ground_truth(annotations)
    measured = AveragePrecision(ground_truth, load_results(results, ground_truth))
    plain = measured()
    assert [plain["AP"], plain["AP50"]] == pytest.approx(official_numbers(annotations, results)[:2])
    assert 0.01 < plain["AP"] < plain["AP50"]
    rng = np.random.default_rng(seed)
    for _ in range(6):
        weight_I = rng.multinomial(4, [0.25] * 4)
        copies = repeated(world, weight_I.tolist())
        again = copies.write(tmp_path), tmp_path / "again.json"
        again[1].write_text(json.dumps(copies.results))
        found = measured(weight_I)
        AP, AP50 = official_numbers(*again)[:2]
        if AP < 0:
            assert found == {"AP": None, "AP50": None}
        else:
            assert [found["AP"], found["AP50"]] == pytest.approx([AP, AP50], abs=1e-12)


def test_the_number_that_a_recall_needs() -> None:
    """By the tool's own search, for every number of objects: 0.29 x 100 is more than 29."""
    truths_C = np.arange(1, 400)
    for truths, needed_R in zip(truths_C, _needed(truths_C), strict=True):
        reached = np.arange(truths + 1) / truths
        np.testing.assert_array_equal(needed_R, np.searchsorted(reached, RECALLS))


def test_equal_scores_and_another_limit(tmp_path: Path) -> None:
    world = small_world(3, images=9)
    for n in range(11):
        world.predict(7, 3, box_mask(world.sizes[7], n, 20, n + 6, 30), 0.95)
    ground_truth = load_ground_truth(write(world, tmp_path)[0])
    results = load_results(world.results[::-1], ground_truth)
    for limit in (10, 100):
        metrics = evaluate_file(ground_truth, results, max_detections=limit, intervals=True)
        interval = metrics.intervals["AP"]
        assert interval.value == pytest.approx(metrics.AP)
        assert metrics.intervals["AP50"].value == pytest.approx(metrics.metrics["score"].AP50)
        assert interval.low < interval.value < interval.high
    again = evaluate_file(ground_truth, results, intervals=True)
    assert again.intervals == metrics.intervals  # seeded
    assert again.as_dict()["intervals"]["AP"] == interval.as_dict()
    assert evaluate_file(ground_truth, results).as_dict()["intervals"] == {}


@pytest.mark.parametrize("seed", range(3))
def test_compared_measures_equal_those_of_resampled_images(tmp_path: Path, seed: int) -> None:
    world = doubled_world(seed)
    for r in world.results:
        r["score"] = 1 - 0.7 * r["score"]
    rng = np.random.default_rng(seed)
    for weights in ([1, 1, 1, 1], rng.multinomial(4, [0.25] * 4).tolist()):
        values = []
        for some, weight_I in ((world, np.array(weights)), (repeated(world, weights), None)):
            ground_truth = load_ground_truth(write(some, tmp_path)[0])
            results = load_results(some.results, ground_truth)
            pairs, rivals_P2 = score_iou_pairs(ground_truth, results), rival_pairs(results)
            matches = match(ground_truth, results, [0.0])[0.0]
            values.append(
                compared_measures(ground_truth, results, pairs, rivals_P2, matches)(weight_I)
            )
        assert values[0] == pytest.approx(values[1], abs=1e-6)
        top = top_predictions(pairs, 0.1)
        assert 10 < len(top) <= 40
        expected = pearsonr(pairs.scores_N[top], pairs.iou_same_class_N[top])[0]
        assert values[1]["PCC"] == pytest.approx(expected)
        shares = count_duplicates(pairs, rivals_P2)
        assert values[1]["second masks"] == shares["score >= 0.5"].share > 0
        assert values[1]["LaECE0"] == localisation_aware_error(matches)


def test_two_predictions_are_enough_for_a_correlation() -> None:
    x, y, one = np.array([0.2, 0.7, 0.9]), np.array([0.5, 0.1, 0.3]), np.array([1, 1, 0])
    found = weighted_pearson(x, y, one)
    assert found is not None
    assert math.isclose(found, -1)
    assert weighted_pearson(x, y, np.array([0, 1, 0])) is None
