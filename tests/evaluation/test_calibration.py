"""The measures against plain loops in exact fractions, and against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignmask.evaluation import calibration
from alignmask.evaluation.calibration import (
    BINS,
    auroc,
    brier_score,
    detection_calibration_error,
    localisation_aware_adaptive_error,
    localisation_aware_error,
    mean_lrp,
    measure,
    of_class,
    of_size,
    optimal_lrp,
    reliability,
)
from alignmask.evaluation.matches import Matches
from tests.evaluation.matched import made


@st.composite
def matched(draw: st.DrawFn) -> tuple[Matches, np.ndarray]:
    """Matches at an IoU of 0.5, and how often each image counts; scores often lie on the edges of
    bins, and are equal."""
    images, classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    number = draw(st.integers(0, 14))
    score = st.one_of(
        st.integers(0, BINS).map(lambda k: k / BINS), st.sampled_from([0.3, 0.55]), st.floats(0, 1)
    )
    iou = st.one_of(st.just(0.0), st.integers(50, 100).map(lambda k: k / 100))
    columns = [draw(st.lists(s, min_size=number, max_size=number)) for s in (score, iou)]
    image_N = draw(st.lists(st.integers(0, images - 1), min_size=number, max_size=number))
    class_N = draw(st.lists(st.integers(0, classes - 1), min_size=number, max_size=number))
    truths_IC = np.array(
        draw(st.lists(st.integers(0, 3), min_size=images * classes, max_size=images * classes))
    )
    truths_IC = truths_IC.reshape(images, classes)
    for i, c, value in zip(image_N, class_N, columns[1], strict=True):
        truths_IC[i, c] += value > 0  # a match needs an object
    weight_I = np.array(draw(st.lists(st.integers(0, 3), min_size=images, max_size=images)))
    return made(*columns, image_N, class_N, truths_IC.tolist()), weight_I


def rows(matches: Matches, weight_I: np.ndarray) -> list[tuple[float, float, int]]:
    """(score, IoU, class) of each prediction, written out as often as its image counts."""
    columns = (matches.scores_N, matches.iou_N, matches.class_N, matches.image_N)
    return [
        (score, iou, c)
        for score, iou, c, i in zip(*(column.tolist() for column in columns), strict=True)
        for _ in range(weight_I[i])
    ]


def binned(found: list[tuple[float, float, int]]) -> list[list[tuple[float, float, int]]]:
    bins = []
    for k in range(BINS):
        low, high = k / BINS, (k + 1) / BINS
        bins.append([row for row in found if low < row[0] <= high or (k == 0 and row[0] == 0)])
    assert sum(map(len, bins)) == len(found)
    return bins


def objects(matches: Matches, weight_I: np.ndarray, c: int) -> int:
    return sum(
        int(row[c]) * int(weight) for row, weight in zip(matches.truths_IC, weight_I, strict=True)
    )


def average(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def oracle_d_ece(found: list[tuple[float, float, int]]) -> float | None:
    if not found:
        return None
    return float(
        sum(
            Fraction(len(members), len(found))
            * abs(
                Fraction(sum(iou > 0 for _, iou, _ in members), len(members))
                - average([Fraction(r[0]) for r in members])
            )
            for members in binned(found)
            if members
        )
    )


def oracle_by_class(matches: Matches, weight_I: np.ndarray, adaptive: bool) -> float | None:
    errors = []
    for c in range(matches.truths_IC.shape[1]):
        found = [row for row in rows(matches, weight_I) if row[2] == c]
        if not found or not objects(matches, weight_I, c):
            continue
        bins = (
            [[row] for row in found]
            if adaptive
            else [members for members in binned(found) if members]
        )
        errors.append(
            sum(
                Fraction(len(members), len(found))
                * abs(
                    average([Fraction(r[1]) for r in members])
                    - average([Fraction(r[0]) for r in members])
                )
                for members in bins
            )
        )
    return float(average(errors)) if errors else None


@given(matched())
def test_calibration_errors(case: tuple[Matches, np.ndarray]) -> None:
    matches, weight_I = case
    found = rows(matches, weight_I)
    assert detection_calibration_error(matches, weight_I) == pytest.approx(oracle_d_ece(found))
    assert localisation_aware_error(matches, weight_I) == pytest.approx(
        oracle_by_class(matches, weight_I, False)
    )
    assert localisation_aware_adaptive_error(matches, weight_I) == pytest.approx(
        oracle_by_class(matches, weight_I, True)
    )


def oracle_lrp(
    found: list[tuple[float, float, int]], truths: int, threshold: float | None
) -> list[Fraction | None]:
    """LRP and its parts of the predictions with at least that score (None: of no prediction)."""
    kept = [] if threshold is None else [row for row in found if row[0] >= threshold]
    right = [Fraction(iou) for _, iou, _ in kept if iou > 0]
    tp, fp, fn = len(right), len(kept) - len(right), truths - len(right)
    distance = sum((1 - iou for iou in right), Fraction(0))
    error = (distance / (1 - Fraction(1, 2)) + fp + fn) / (tp + fp + fn)
    return [
        error,
        distance / tp if tp else None,
        Fraction(fp, len(kept)) if kept else None,
        Fraction(fn, truths),
    ]


@given(matched())
def test_optimal_lrp(case: tuple[Matches, np.ndarray]) -> None:
    matches, weight_I = case
    found = optimal_lrp(matches, weight_I)
    counted = [c for c in range(matches.truths_IC.shape[1]) if objects(matches, weight_I, c)]
    assert list(found) == [matches.category_ids[c] for c in counted]
    for c in counted:
        lrp, truths = found[matches.category_ids[c]], objects(matches, weight_I, c)
        mine = [row for row in rows(matches, weight_I) if row[2] == c]
        best = min(oracle_lrp(mine, truths, s)[0] for s in [None, *(row[0] for row in mine)])
        assert lrp.error == pytest.approx(float(best))
        at = [
            None if part is None else float(part)
            for part in oracle_lrp(mine, truths, lrp.threshold)
        ]
        assert [
            lrp.error,
            lrp.localisation,
            lrp.false_positive,
            lrp.false_negative,
        ] == pytest.approx(at)
    mean = mean_lrp(found)
    for part in mean:
        defined = [getattr(lrp, part) for lrp in found.values() if getattr(lrp, part) is not None]
        assert mean[part] == (pytest.approx(sum(defined) / len(defined)) if defined else None)


def test_optimal_lrp_by_hand() -> None:
    """Four objects. From 0.6 on: two right ones with IoUs of 0.9 and 0.7, a wrong one, two objects
    missed."""
    matches = made([0.9, 0.8, 0.6, 0.1, 0.1], [0.9, 0.0, 0.7, 0.0, 0.0], [0] * 5, [0] * 5, [[4]])
    (lrp,) = optimal_lrp(matches).values()
    assert lrp.threshold == 0.6
    assert lrp.error == pytest.approx(((0.1 + 0.3) / 0.5 + 1 + 2) / 5)
    assert lrp.localisation == pytest.approx(0.2)
    assert lrp.false_positive == pytest.approx(1 / 3)
    assert lrp.false_negative == pytest.approx(1 / 2)


def test_of_equal_optima_the_highest_threshold_counts() -> None:
    """A right prediction with an IoU of exactly 0.5 is worth nothing: LRP is 1 with it and
    without."""
    matches = made([0.9, 0.8, 0.4], [1.0, 0.0, 0.5], [0] * 3, [0] * 3, [[2]])
    assert optimal_lrp(matches)[3].threshold == 0.9
    nothing = optimal_lrp(made([0.9], [0.0], [0], [0], [[2]]))[3]
    assert (nothing.error, nothing.threshold, nothing.false_positive, nothing.false_negative) == (
        1,
        None,
        None,
        1,
    )


@given(matched())
def test_brier_score_and_auroc(case: tuple[Matches, np.ndarray]) -> None:
    matches, weight_I = case
    found = rows(matches, weight_I)
    squares = [(Fraction(score) - (iou > 0)) ** 2 for score, iou, _ in found]
    assert brier_score(matches, weight_I) == (
        pytest.approx(float(average(squares))) if squares else None
    )
    pairs = [
        Fraction((a > b) - (a < b) + 1, 2)
        for a, a_iou, _ in found
        for b, b_iou, _ in found
        if a_iou > 0 and b_iou == 0
    ]
    assert auroc(matches, weight_I) == (pytest.approx(float(average(pairs))) if pairs else None)


@pytest.mark.parametrize("name", ["detection_calibration_error", "localisation_aware_error",
                                  "localisation_aware_adaptive_error", "brier_score", "auroc", "optimal_lrp"])  # fmt: skip
def test_without_weights_every_image_counts_once(name: str) -> None:
    rng = np.random.default_rng(0)
    matches = made(
        rng.random(40).tolist(),
        np.where(rng.random(40) < 0.5, 0, rng.uniform(0.5, 1, 40)).tolist(),
        rng.integers(0, 3, 40).tolist(),
        rng.integers(0, 2, 40).tolist(),
        [[20, 20]] * 3,
    )
    function = getattr(calibration, name)
    assert function(matches) is not None
    assert function(matches) == function(matches, np.ones(3, np.int64))


@pytest.mark.parametrize("score", [-0.1, 1.1])
def test_scores_that_are_no_probabilities_forecast_nothing(score: float) -> None:
    matches = made([0.5, score, 0.2], [1.0, 0.5, 0.0], [0] * 3, [0] * 3, [[3]])
    values = measure(dict.fromkeys((0.0, 0.5, 0.75), matches))
    assert {name for name, value in values.items() if value is None} == {
        "LaECE0", "LaACE0", "D-ECE50", "Brier50", "Brier75"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        reliability(matches)


def test_each_measure_is_of_its_own_matches() -> None:
    """Three different matchings: every number must come from the right one."""
    any_ = made([0.9, 0.5], [0.6, 0.2], [0, 0], [0, 0], [[2]], 0.0)
    half = made([0.9, 0.5], [0.6, 0.0], [0, 0], [0, 0], [[2]], 0.5)
    good = made([0.9, 0.5, 0.1], [0.0, 0.8, 0.0], [0, 0, 0], [0, 0, 0], [[2]], 0.75)
    values = measure({0.0: any_, 0.5: half, 0.75: good})
    assert values == pytest.approx(
        {
            "LaECE0": 0.3,
            "LaACE0": 0.3,
            "D-ECE50": (0.1 + 0.5) / 2,
            "oLRP": (0.4 / 0.5 + 1) / 2,
            "oLRP_localisation": 0.4,
            "oLRP_false_positive": 0.0,
            "oLRP_false_negative": 0.5,
            "Brier50": (0.01 + 0.25) / 2,
            "Brier75": (0.81 + 0.25 + 0.01) / 3,
            "AUROC50": 1.0,
            "AUROC75": 0.5,
        }
    )


def test_reliability_diagram() -> None:
    matches = made(
        [0.0, 0.04, 0.05, 0.99, 1.0], [0.0, 0.6, 0.0, 0.8, 1.0], [0] * 5, [0, 0, 0, 1, 1], [[3, 3]]
    )
    diagram = reliability(matches)
    assert diagram.predictions == [2, 1, *[0] * 22, 2]
    assert diagram.mean_score == [0.02, 0.05, *[None] * 22, 0.995]
    assert diagram.mean_iou == [0.3, 0.0, *[None] * 22, 0.9]
    assert diagram.matched == [0.5, 0.0, *[None] * 22, 1.0]
    assert reliability(of_class(matches, 7)).predictions == [*[0] * 24, 2]


def test_reliability_of_low_scores_has_all_bins() -> None:
    diagram = reliability(made([0.05], [0.5], [0], [0], [[1]]))
    assert diagram.predictions == [0, 1, *[0] * 23]
    assert diagram.mean_iou == [None, 0.5, *[None] * 23]


def test_sizes_are_those_of_the_predicted_masks() -> None:
    matches = made([0.1] * 4, [0.0] * 4, [0] * 4, [0] * 4, [[1]])
    matches = replace(matches, area_N=np.array([1024, 1025, 9216, 9217]))
    assert [of_size(matches, size).area_N.tolist() for size in calibration.SIZES] == [
        [1024],
        [1025, 9216],
        [9217],
    ]
