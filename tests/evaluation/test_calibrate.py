"""Fit on one half, report on the other."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from alignmask.evaluation.best_f1 import best_thresholds, f1_at
from alignmask.evaluation.calibrate import COMPARED, Report, calibrate
from alignmask.evaluation.calibration import measure
from alignmask.evaluation.calibrators import fit_calibration, split_images
from alignmask.evaluation.guarantee import find_guarantee
from alignmask.evaluation.matches import match
from alignmask.evaluation.results_file import GroundTruth, Results, load_ground_truth, load_results
from tests.evaluation.worlds import World, box_mask, write

SIZE = (40, 60)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """40 images with 4 objects each, of which the model finds most; it claims twice the IoU that it
    has."""
    rng = np.random.default_rng(0)
    world = World(dict.fromkeys(range(1, 41), SIZE), {2: "cell", 5: "dot"})
    for image in world.sizes:
        for left in (2, 16, 30, 44):
            category = int(rng.choice([2, 5]))
            world.annotate(image, category, box_mask(SIZE, 5, left, 25, left + 10))
            height = int(rng.integers(4, 21))  # of 20: the IoU is height / 20
            score = float(np.clip(height / 20 + rng.normal(0, 0.05), 0, 1)) ** 0.5
            world.predict(image, category, box_mask(SIZE, 5, left, 5 + height, left + 10), score)
    return write(world, tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def loaded(files: tuple[Path, Path]) -> tuple[GroundTruth, Results]:
    ground_truth = load_ground_truth(files[0])
    return ground_truth, load_results(files[1], ground_truth)


@pytest.fixture(scope="module")
def report(loaded: tuple[GroundTruth, Results]) -> Report:
    return calibrate(
        *loaded,
        precision=0.7,
        iou=0.6,
        confidence=0.8,
        per_class=True,
        fewest=45,
        seed=3,
        resamples=50,
    )


def test_defaults_are_what_the_documentation_says() -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(calibrate).parameters.items()
        if parameter.default is not parameter.empty
    }
    assert defaults | {"fewest": 0} == {
        "method": "isotonic", "precision": None, "iou": 0.75, "confidence": 0.95, "per_class": False, "fewest": 0, "seed": 0,
        "resamples": 500, "score": "file", "suppression": "off", "tile": None,
    }  # fmt: skip


def test_fitted_on_one_half_and_reported_on_the_other(
    report: Report, loaded: tuple[GroundTruth, Results], files: tuple[Path, Path]
) -> None:
    ground_truth, results = loaded
    ours, others = split_images(list(ground_truth.sizes), seed=3)
    fit = report.calibration.fit
    assert asdict(fit) == {
        "annotations": "annotations.json",
        "annotations_sha256": hashlib.sha256(files[0].read_bytes()).hexdigest(),
        "seed": 3,
        "images": 20,
        "held_out_images": 20,
        "fewest": 45,
        "score": "file",
        "suppression": "off",
        "tile": None,
    }
    half, held_out = (
        match(ground_truth, results),
        match(ground_truth.subset(others), results.subset(others)),
    )
    alone = fit_calibration(half[0.0].subset(ours), "isotonic", fit, 45)
    assert (alone.pooled, alone.by_class) == (
        report.calibration.pooled,
        report.calibration.by_class,
    )
    before = measure(held_out)
    after = measure({threshold: alone.calibrate(found) for threshold, found in held_out.items()})
    for name in COMPARED:
        assert report.before[name] == pytest.approx(before[name])
        assert report.after[name] == pytest.approx(after[name])
        assert report.difference[name].value == pytest.approx(after[name] - before[name])
        assert (
            report.difference[name].low
            <= report.difference[name].value
            <= report.difference[name].high
        )
    assert report.difference["LaECE0"].high < 0


def test_the_guarantee_is_tested_on_what_the_thresholds_were_not_chosen_on(
    report: Report, loaded: tuple[GroundTruth, Results]
) -> None:
    ours, others = split_images(list(loaded[0].sizes), seed=3)
    right = match(*loaded, (0.6,))[0.6]
    expected = [
        find_guarantee(
            right.subset(ours),
            right.subset(others),
            precision=0.7,
            confidence=0.8,
            category_id=category_id,
        )
        for category_id in (2, 5)
    ]
    assert report.calibration.guarantees == expected
    assert any(guarantee.threshold is not None for guarantee in expected)


def test_thresholds_are_of_one_half_and_shown_on_the_other(
    report: Report, loaded: tuple[GroundTruth, Results]
) -> None:
    ours, others = split_images(list(loaded[0].sizes), seed=3)
    half = match(*loaded, (0.5,))[0.5]
    assert report.calibration.best_f1 == best_thresholds(half.subset(ours))
    other, own = half.subset(others), report.calibration.best_f1.by_class
    kept = right = 0
    for score, iou, c in zip(other.scores_N, other.iou_N, other.class_N, strict=True):
        if score >= own[str(other.category_ids[c])].threshold:
            kept += 1
            right += iou > 0
    objects = len(others) * 4
    assert report.f1["best"] == pytest.approx(2 * right / (kept + objects))
    assert report.f1["from 0.5 on"] == f1_at(other, 0.5)
    assert report.f1["best"] != report.f1["from 0.5 on"]
    sentence, *guarantees = report.sentences()
    assert f"{report.f1['best']:.3f} with the best thresholds of the classes" in sentence
    assert ["of class cell" in guarantees[0], "of class dot" in guarantees[1]] == [True, True]


def test_second_masks_are_suppressed_before(loaded: tuple[GroundTruth, Results]) -> None:
    """With every mask there twice, under half its score: without the second ones all is as if they
    had never been there."""
    ground_truth, results = loaded
    second = [{**entry, "score": entry["score"] / 2} for entry in results.entries]
    doubled = replace(results, entries=[*results.entries, *second])
    plain = calibrate(ground_truth, results, resamples=0).calibration
    hard = calibrate(ground_truth, doubled, resamples=0, suppression="hard").calibration
    assert hard.fit.suppression == "hard"
    assert replace(hard, fit=plain.fit) == plain
    off = calibrate(ground_truth, doubled, resamples=0).calibration
    assert off.pooled != plain.pooled


def test_other_halves_and_no_intervals(report: Report, loaded: tuple[GroundTruth, Results]) -> None:
    other = calibrate(*loaded, "platt", seed=4, resamples=0)
    assert other.calibration.guarantees == []
    assert other.difference["LaECE0"].low is None
    assert other.before["LaECE0"] != report.before["LaECE0"]
    with pytest.raises(ValueError, match="calibrate: iou"):
        calibrate(*loaded, iou=0)


def test_more_objects_of_a_class_than_count_in_AP(tmp_path: Path) -> None:
    """All of 150 predictions are right, down to the last one: none of them is cut off."""
    scores = np.linspace(0.95, 0.25, 150)
    world = World(dict.fromkeys(range(1, 5), (60, 75)), {1: "cell"})
    for image in world.sizes:
        for n, score in enumerate(scores.tolist()):
            top, left = 5 * (n // 15), 5 * (n % 15)
            mask_HW = box_mask((60, 75), top, left, top + 4, left + 4)
            world.annotate(image, 1, mask_HW)
            world.predict(image, 1, mask_HW, score)
    truth = load_ground_truth(world.write(tmp_path))
    report = calibrate(truth, load_results(world.results, truth), resamples=0)
    assert report.calibration.best_f1.pooled.threshold == pytest.approx(0.25)
    assert report.f1["best"] == 1.0
