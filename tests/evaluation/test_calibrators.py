"""Fitted maps against their definitions, and what is stored of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignmask.config import CalibrationMethod
from alignmask.evaluation.calibration import localisation_aware_error
from alignmask.evaluation.calibrators import (
    Calibration,
    Fit,
    ScoreMap,
    fit_calibration,
    fit_map,
    read_calibration,
    split_images,
    write_calibration,
)
from alignmask.evaluation.guarantee import Guarantee
from alignmask.evaluation.matches import Matches
from tests.evaluation.matched import made

FIT = Fit("val.json", "0" * 64, seed=0, images=4, held_out_images=4, fewest=50, score="file")
POINTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=12,
)


def arrays(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in points]), np.array([iou for _, iou in points])


@pytest.mark.parametrize("method", get_args(CalibrationMethod))
@given(points=POINTS)
def test_maps_never_fall_and_stay_within_0_and_1(
    method: CalibrationMethod, points: list[tuple[float, float]]
) -> None:
    score_map = fit_map(method, *arrays(points))
    values = score_map(np.linspace(0, 1, 101))
    assert (np.diff(values) >= -1e-12).all()
    assert ((values >= 0) & (values <= 1)).all()


@given(POINTS)
def test_isotonic_is_the_least_squares_fit(points: list[tuple[float, float]]) -> None:
    """Of a non-decreasing fit: the largest, over the beginnings before it, of the smallest mean up
    to any end after it."""
    groups: dict[float, list[Fraction]] = {}
    for score, iou in sorted(points):
        groups.setdefault(score, []).append(Fraction(iou))
    levels = list(groups.values())

    def mean(first: int, last: int) -> Fraction:
        values = [value for level in levels[first : last + 1] for value in level]
        return sum(values, Fraction(0)) / len(values)

    expected = [
        float(max(min(mean(j, k) for k in range(i, len(levels))) for j in range(i + 1)))
        for i in range(len(levels))
    ]
    assert fit_map("isotonic", *arrays(points))(np.array(list(groups))) == pytest.approx(
        expected, abs=1e-12
    )


@given(POINTS)
def test_linear_is_the_least_squares_fit_that_does_not_fall(
    points: list[tuple[float, float]],
) -> None:
    scores_N, iou_N = arrays(points)
    fitted = fit_map("linear", scores_N, iou_N)
    error = ((fitted.slope * scores_N + fitted.intercept - iou_N) ** 2).sum()
    for slope, intercept in product((-0.01, 0, 0.01), repeat=2):
        other = max(0.0, fitted.slope + slope) * scores_N + fitted.intercept + intercept
        assert error <= ((other - iou_N) ** 2).sum() + 1e-9


def entropy(slope: float, intercept: float, points: list[tuple[float, float]]) -> float:
    total = 0.0
    for score, iou in points:
        inside = min(max(score, 1e-6), 1 - 1e-6)
        q = 1 / (1 + math.exp(-(slope * math.log(inside / (1 - inside)) + intercept)))
        total -= (iou * math.log(q) if iou else 0) + ((1 - iou) * math.log(1 - q) if iou < 1 else 0)
    return total / len(points)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_logistic_maps_have_the_smallest_cross_entropy(method: CalibrationMethod) -> None:
    rng = np.random.default_rng(0)
    points = [(float(s), float(np.clip(s**2 + rng.normal(0, 0.1), 0, 1))) for s in rng.random(50)]
    fitted = fit_map(method, *arrays(points))
    assert (fitted.intercept != 0) == (method == "platt")
    best = entropy(fitted.slope, fitted.intercept, points)
    for slope, intercept in product(
        (-0.02, 0, 0.02), (-0.02, 0, 0.02) if method == "platt" else (0,)
    ):
        assert best <= entropy(fitted.slope + slope, fitted.intercept + intercept, points) + 1e-12
    by_hand = 1 / (1 + math.exp(-(fitted.slope * math.log(0.3 / 0.7) + fitted.intercept)))
    assert fitted(np.array([0.3])) == pytest.approx([by_hand])


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_a_score_that_says_the_opposite_is_forgotten(method: CalibrationMethod) -> None:
    assert fit_map(method, np.array([0.1, 0.9]), np.array([0.9, 0.1])).slope == pytest.approx(
        0, abs=1e-6
    )


def overconfident(predictions: int = 600, images: int = 20) -> Matches:
    """Two classes: the IoU of one is half the score, that of the other its square, or 0."""
    rng = np.random.default_rng(0)
    scores_N, class_N = rng.random(predictions), rng.integers(0, 2, predictions)
    iou_N = np.where(class_N == 0, scores_N / 2, scores_N**2) * (rng.random(predictions) < 0.7)
    image_N = rng.integers(0, images, predictions)
    return made(scores_N, iou_N, image_N, class_N, [[50, 50]] * images, 0.0)


@pytest.mark.parametrize(
    ("method", "times"), [("isotonic", 4), ("linear", 4), ("platt", 1.5), ("temperature", 1)]
)
def test_it_helps_on_images_that_it_was_not_fitted_on(
    method: CalibrationMethod, times: float
) -> None:
    """A temperature cannot express that 0.5 means less than 0.5."""
    matches = overconfident()
    ours, others = split_images(matches.image_ids)
    calibration = fit_calibration(matches.subset(ours), method, FIT)
    held_out = matches.subset(others)
    before, after = (
        localisation_aware_error(held_out),
        localisation_aware_error(calibration.calibrate(held_out)),
    )
    assert before > 0.2
    assert after < before / times


def test_a_class_with_few_predictions_takes_the_common_map() -> None:
    matches = overconfident()
    few = matches.select((matches.class_N == 0) | (np.cumsum(matches.class_N == 1) <= 49))
    enough = matches.select((matches.class_N == 0) | (np.cumsum(matches.class_N == 1) <= 50))
    calibration = fit_calibration(few, "isotonic", FIT)
    assert list(calibration.by_class) == ["3"]
    assert list(fit_calibration(enough, "isotonic", FIT).by_class) == ["3", "7"]
    assert list(fit_calibration(few, "isotonic", FIT, fewest=49).by_class) == ["3", "7"]
    scores_N = np.array([0.3, 0.8, 0.3, 0.8])
    quality_N = calibration.quality(scores_N, np.array([3, 3, 7, 7]))
    assert quality_N[:2].tolist() == calibration.by_class["3"](scores_N[:2]).tolist()
    assert quality_N[2:].tolist() == calibration.pooled(scores_N[2:]).tolist()
    assert calibration.pooled == fit_map("isotonic", few.scores_N, few.iou_N)
    assert calibration.by_class["3"] == fit_map(
        "isotonic", *(x[few.class_N == 0] for x in (few.scores_N, few.iou_N))
    )


def test_what_cannot_be_fitted() -> None:
    matches = overconfident()
    with pytest.raises(ValueError, match="no prediction to fit on"):
        fit_calibration(matches.select(matches.scores_N > 1), "linear", FIT)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, got .* to 2"):
        fit_calibration(
            matches.with_scores(matches.scores_N / matches.scores_N.max() * 2), "linear", FIT
        )


def test_the_split_depends_on_the_ids_alone() -> None:
    ids = [9, 4, 1, 7, 30]
    ours, others = split_images(ids)
    assert (len(ours), len(others)) == (3, 2)
    assert sorted(ours + others) == sorted(ids)
    assert split_images(ids[::-1]) == (ours, others)
    assert len({tuple(split_images(ids, seed)[0]) for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="2 images or more"):
        split_images([1])


CALIBRATION = Calibration(
    "isotonic",
    ScoreMap("isotonic", scores_K=[0.0, 0.5], iou_K=[0.1, 0.7]),
    {"3": ScoreMap("platt", 2.0, -0.5)},
    FIT,
    [
        Guarantee(0.9, 0.75, 0.95, None, 0.6, 10, 20, 100, 97),
        Guarantee(0.9, 0.75, 0.95, 3, None, 0, 20, 0, 0),
    ],
)


def test_stored_and_read(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, replace(CALIBRATION, guarantees=[]))
    write_calibration(path, CALIBRATION)  # its own file it replaces
    assert read_calibration(path) == CALIBRATION


@pytest.mark.parametrize("content", ["", "[]", '{"made_by": "me"}', "\x80"])
def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError,
        match=r"calibration\.json: this file is not a calibration, and is not overwritten",
    ):
        write_calibration(path, CALIBRATION)
    assert path.read_bytes() == content.encode("latin-1")
    with pytest.raises(ValueError, match=r"calibration\.json cannot be read"):
        read_calibration(path)


def test_a_damaged_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, CALIBRATION)
    data = json.loads(path.read_text())
    data["pooled"]["iou_K"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="equally long"):
        read_calibration(path)
