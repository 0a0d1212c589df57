"""Table 2's statistics against loops over pixels and exact fractions."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from rich.console import Console

from alignmask.evaluation.alignment import (
    NO_TRUTH,
    PER_IMAGE,
    ScoreIoU,
    alignment_table,
    calibration_error,
    oracle_scores,
    pearson,
    score_interval,
    score_iou_pairs,
    spearman,
    statistics,
    top_predictions,
)
from tests.evaluation.worlds import World, box_mask, small_world, worlds, write

FRACTIONS = (0.02, 0.10, 1.0)


def iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    union = int((a_HW | b_HW).sum())
    return int((a_HW & b_HW).sum()) / union if union else 0.0


def oracle_pairs(world: World) -> tuple[list[float], list[float]]:
    """IoU with the best ground truth of the same category, and of any, of every prediction."""
    same, any_ = [], []
    for result in world.results:
        mask_HW = mask_utils.decode(result["segmentation"]).astype(bool)
        best_same = best_any = 0.0
        for annotation in world.annotations:
            if annotation["image_id"] != result["image_id"] or annotation["iscrowd"]:
                continue
            value = iou(mask_HW, mask_utils.decode(annotation["segmentation"]).astype(bool))
            best_any = max(best_any, value)
            if annotation["category_id"] == result["category_id"]:
                best_same = max(best_same, value)
        same.append(best_same)
        any_.append(best_any)
    return same, any_


def oracle_top(world: World, fraction: float) -> list[int]:
    """Best first; a later one of equal score comes later."""
    best = sorted(range(len(world.results)), key=lambda n: (-world.results[n]["score"], n))
    seen: dict[int, int] = {}
    kept = []
    for n in best:
        image = world.results[n]["image_id"]
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= PER_IMAGE:
            kept.append(n)
    return kept[: round(fraction * 100 * len(world.sizes))]


def oracle_pearson(x: list[float], y: list[float]) -> float | None:
    """In exact arithmetic up to the root."""
    if len(x) < 2:
        return None
    x_exact, y_exact = [Fraction(v) for v in x], [Fraction(v) for v in y]
    x_mean, y_mean = sum(x_exact) / len(x), sum(y_exact) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x_exact, y_exact, strict=True))
    spread = sum((a - x_mean) ** 2 for a in x_exact) * sum((b - y_mean) ** 2 for b in y_exact)
    return float(covariance) / math.sqrt(spread) if spread else None


def oracle_spearman(x: list[float], y: list[float]) -> float | None:
    """Equal values share the mean of their ranks."""

    def ranks(values: list[float]) -> list[Fraction]:
        return [
            Fraction(sum(v < w for v in values) * 2 + sum(v == w for v in values) + 1, 2)
            for w in values
        ]

    return oracle_pearson(ranks(x), ranks(y))  # type: ignore[arg-type]


def oracle_calibration_error(x: list[float], y: list[float]) -> float | None:
    """Ten intervals of the score, 1.0 in the last one."""
    total = Fraction(0)
    for k in range(10):
        inside = [n for n, score in enumerate(x) if int(score * 10) == k or (k == 9 and score == 1)]
        total += abs(sum(Fraction(x[n]) - Fraction(y[n]) for n in inside))
    return float(total / len(x)) if x else None


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def approx(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=80,
)
@given(worlds())
def test_equals_the_oracle(tmp_path: Path, world: World) -> None:
    pairs = score_iou_pairs(*write(world, tmp_path))
    same, any_ = oracle_pairs(world)
    np.testing.assert_allclose(pairs.iou_same_class_N, same, rtol=1e-12)
    np.testing.assert_allclose(pairs.iou_any_class_N, any_, rtol=1e-12)
    assert pairs.scores_N.tolist() == [r["score"] for r in world.results]
    for kind, ids in (("same", pairs.truth_same_class_N), ("any", pairs.truth_any_class_N)):
        for result, value, annotation_id in zip(
            world.results, same if kind == "same" else any_, ids, strict=True
        ):
            assert (annotation_id == NO_TRUTH) == (value == 0)
            if value:
                truth = world.annotations[annotation_id - 1]
                assert (truth["image_id"], truth["iscrowd"]) == (result["image_id"], 0)
                assert kind == "any" or truth["category_id"] == result["category_id"]
                masks = [
                    mask_utils.decode(record["segmentation"]).astype(bool)
                    for record in (result, truth)
                ]
                assert iou(*masks) == pytest.approx(value)
    found = statistics(pairs, FRACTIONS)
    assert (found.images, found.predictions) == (len(world.sizes), len(world.results))
    for fraction, row in zip(FRACTIONS, found.top, strict=True):
        top = oracle_top(world, fraction)
        assert top_predictions(pairs, fraction).tolist() == top
        score = [world.results[n]["score"] for n in top]
        assert (row.fraction, row.predictions) == (fraction, len(top))
        assert row.mean_score == approx(mean(score))
        for name, values in (("same_class", same), ("any_class", any_)):
            best = [values[n] for n in top]
            assert getattr(row, f"mean_iou_{name}") == approx(mean(best)), name
            assert getattr(row, f"pcc_{name}") == approx(oracle_pearson(score, best)), name
            best = getattr(pairs, f"iou_{name}_N")[top].tolist()  # ties to the last bit
            assert getattr(row, f"spearman_{name}") == approx(oracle_spearman(score, best)), name
            assert getattr(row, f"calibration_error_{name}") == approx(
                oracle_calibration_error(score, best)
            ), name


def pairs_of(
    scores: list[float], ious: list[float], images: int = 1, image_ids: list[int] | None = None
) -> ScoreIoU:
    n = len(scores)
    ids = np.array(image_ids if image_ids is not None else [0] * n, np.int64)
    same, any_ = np.array(ious, float), np.array(ious, float)
    truths, classes = np.zeros((2, n), np.int64)
    return ScoreIoU(np.array(scores, float), same, any_, truths, truths, ids, classes, images)


def test_a_worked_example() -> None:
    """Two images: the top 2 % are four predictions. Scores 0.9 to 0.6 with IoUs 1, 1, 0, 0."""
    scores, ious = [0.1, 0.6, 0.9, 0.8, 0.7], [0.5, 0.0, 1.0, 1.0, 0.0]
    row = statistics(pairs_of(scores, ious, 2, [1, 2, 1, 2, 1])).top[0]
    assert row.predictions == 4
    assert row.mean_score == pytest.approx(0.75)
    assert row.mean_iou_same_class == pytest.approx(0.5)
    assert row.pcc_same_class == pytest.approx(2 / math.sqrt(5))


def test_at_most_100_predictions_of_an_image_count() -> None:
    """The 101st of image 1 gives way to a less confident one of image 2."""
    scores = [0.9] * 101 + [0.1]
    top = top_predictions(pairs_of(scores, [0.5] * 102, 2, [1] * 101 + [2]), 1.0)
    assert top.tolist() == [*range(100), 101]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be in"):
        top_predictions(pairs_of([0.5], [0.5]), fraction)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=30))
def test_pearson(points: list[tuple[int, int]]) -> None:
    x, y = ([value / 1000 for value in values] for values in zip(*points, strict=True))
    found = pearson(np.array(x), np.array(y))
    assert found == approx(oracle_pearson(x, y))
    if found is not None:
        assert -1 <= found <= 1
        assert pearson(np.array(y), np.array(x)) == pytest.approx(found)
        assert pearson(3 * np.array(x) + 1, -np.array(y)) == pytest.approx(-found, abs=1e-9)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.5, 0.5], [0, 1]),
        ([0, 1], [0.3, 0.3]),
        ([0, 5e-324], [0, 1]),
        ([0.1] * 7, range(7)),
    ],
)
def test_pearson_is_undefined_without_spread(x: list[float], y: list[float]) -> None:
    assert pearson(np.array(x, float), np.array(y, float)) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=30))
def test_spearman(points: list[tuple[int, int]]) -> None:
    x, y = (np.array(values, float) for values in zip(*points, strict=True))
    found = spearman(x, y)
    assert found == approx(oracle_spearman(list(x), list(y)))
    assert spearman(np.exp(x), y) == approx(found)  # ranks alone count


def test_calibration_error() -> None:
    """Two intervals: 0.8 twice with IoUs 1 and 0.2, 0.1 once with IoU 0.4."""
    assert calibration_error(np.array([0.8, 0.8, 0.1]), np.array([1, 0.2, 0.4])) == pytest.approx(
        (0.4 + 0.3) / 3
    )
    assert calibration_error(np.array([0.25, 0.35]), np.array([0.25, 0.35])) == 0
    assert calibration_error(np.array([]), np.array([])) is None
    # A logit is no forecast of an IoU.
    assert calibration_error(np.array([0.5, 1.5]), np.array([0.5, 1])) is None
    assert calibration_error(np.array([0.5, -0.1]), np.array([0.5, 1])) is None


def test_score_intervals() -> None:
    scores = [-2, 0, 0.0999, 0.1, 0.3, 0.6, 0.7, 0.9, 1, 1e300]
    assert score_interval(np.array(scores)).tolist() == [0, 0, 0, 1, 3, 6, 7, 9, 9, 9]


def test_the_perfect_ranking_puts_duplicates_last() -> None:
    pairs = replace(
        pairs_of([0.1, 0.9, 0.5, 0.4, 0.3], [0.8, 0.7, 0.8, 0.6, 0.0]),
        truth_same_class_N=np.array([1, 1, 1, 2, NO_TRUTH]),
    )
    assert oracle_scores(pairs) == pytest.approx([0.8, -0.3, -0.2, 0.6, -1])
    assert oracle_scores(pairs_of([], [])).shape == (0,)


def test_crowds_are_no_instances(tmp_path: Path) -> None:
    world = World({1: (20, 20)}, {1: "a", 2: "b"})
    whole = box_mask((20, 20), 0, 0, 20, 20)
    world.annotate(1, 1, whole, crowd=True)
    world.annotate(1, 2, box_mask((20, 20), 0, 0, 10, 20))
    world.predict(1, 1, whole, 0.5)
    pairs = score_iou_pairs(*write(world, tmp_path))
    assert (pairs.iou_same_class_N[0], pairs.iou_any_class_N[0]) == (0, 0.5)


def test_empty_masks_have_no_overlap(tmp_path: Path) -> None:
    """Neither with a mask nor with an empty one; nothing is NaN."""
    world = World({1: (20, 20)}, {1: "a"})
    nothing = box_mask((20, 20), 0, 0, 0, 0)
    world.annotate(1, 1, nothing)
    world.predict(1, 1, nothing, 0.5)
    world.predict(1, 1, box_mask((20, 20), 0, 0, 5, 5), 0.5)
    assert score_iou_pairs(*write(world, tmp_path)).iou_same_class_N.tolist() == [0, 0]


def test_other_scores_for_the_same_masks(tmp_path: Path) -> None:
    world = small_world()
    pairs = score_iou_pairs(*write(world, tmp_path))
    halved = [{**r, "score": r["score"] ** 2 / 2} for r in world.results]
    again = pairs.with_scores(np.array([r["score"] for r in halved]))
    assert statistics(again) == statistics(score_iou_pairs(tmp_path / "annotations.json", halved))
    with pytest.raises(ValueError, match="expected 14 scores, got shape"):
        pairs.with_scores(np.zeros(3))


def test_image_ids_restrict_images_and_predictions(tmp_path: Path) -> None:
    world = small_world()
    wanted = list(world.sizes)[:2]
    part = score_iou_pairs(*write(world, tmp_path), image_ids=wanted)
    assert part.images == 2
    whole = score_iou_pairs(*write(world, tmp_path))
    kept = np.isin(whole.image_ids_N, wanted)
    np.testing.assert_array_equal(part.iou_same_class_N, whole.iou_same_class_N[kept])
    assert set(part.image_ids_N) == set(wanted)


# -- what is printed
# --------------------------------------------------------------------------------------------------


def printed(renderable: Any) -> list[str]:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


def test_table() -> None:
    found = statistics(pairs_of([0.9, 0.8, 0.1], [1.0, 0.5, 0.25], images=1))
    lines = printed(found.table())
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        "top",
        "predictions",
        "mean",
        "score",
        "mean",
        "IoU",
        "PCC",
        "mean",
        "IoU*",
        "PCC*",
    ]
    assert lines[3].split() == ["2", "%", "2", "0.850", "0.750", "1.000", "0.750", "1.000"]
    assert lines[4].split() == ["10", "%", "3", "0.600", "0.583", "0.826", "0.583", "0.826"]
    assert lines[-1].strip() == "* ground truth of any class"


def test_table_shows_what_is_undefined_as_a_dash() -> None:
    equal = statistics(pairs_of([0.5] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]))
    assert equal.top[0].pcc_same_class is None
    assert equal.top[1].mean_iou_same_class == pytest.approx(0.3)
    assert printed(equal.table())[3].split() == ["2", "%", "2", "0.500", "0.150", "-", "0.150", "-"]
    nothing = statistics(pairs_of([], []))
    assert printed(nothing.table())[3].split() == ["2", "%", "0", *"-----"]
    assert json.loads(json.dumps(nothing.as_dict()))["top"][0]["mean_score"] is None


def test_table_of_several_fits_80_columns() -> None:
    found = statistics(
        replace(pairs_of([0.9] * 10_000, [0.1] * 10_000, 5000), image_ids_N=np.arange(10_000))
    )
    lines = printed(alignment_table({"class": found, "class*mask": found}))
    assert max(map(len, lines)) <= 80
    assert lines[3].split()[:5] == ["class", "2", "%", "10000", "0.900"]


def test_a_spread_below_precision_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pearson(np.array([0.0, 5e-324]), np.array([0.0, 1.0])) is None
