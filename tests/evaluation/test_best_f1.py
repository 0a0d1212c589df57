"""The thresholds with the largest F1, against loops over all thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from alignmask.evaluation.best_f1 import BestF1, Thresholds, best_thresholds, f1_at
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.matches import match
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.evaluation.matched import made
from tests.evaluation.test_matches import oracle as matched
from tests.evaluation.test_tables import printed
from tests.evaluation.worlds import World, small_world, worlds, write


def f1_of(
    world: World, found: dict[int, float | None], category: int | None, score: float
) -> float:
    kept = [n for n in found if world.results[n]["score"] >= score]
    kept = [n for n in kept if category in (None, world.results[n]["category_id"])]
    truths = [a for a in world.annotations if not a["iscrowd"]]
    truths = [a for a in truths if category in (None, a["category_id"])]
    return 2 * sum(bool(found[n]) for n in kept) / (len(kept) + len(truths))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=30,
)
@given(worlds())
def test_equals_loops(tmp_path: Path, world: World) -> None:
    annotations, results = write(world, tmp_path)
    ground_truth = load_ground_truth(annotations)
    matches = match(ground_truth, load_results(results, ground_truth), [0.5])[0.5]
    found = matched(world, 0.5)
    thresholds = best_thresholds(matches)
    objects = {a["category_id"] for a in world.annotations if not a["iscrowd"]}
    assert {int(key) for key in thresholds.by_class} == objects
    every = {int(key): best for key, best in thresholds.by_class.items()} | {
        None: thresholds.pooled
    }
    for category, best in every.items():
        mine = [n for n in found if category in (None, world.results[n]["category_id"])]
        if not objects:
            assert best == BestF1(None, -1.0, None, None)
        elif not any(found[n] for n in mine):
            assert best == BestF1(None, 0.0, None, None)
        else:
            scores = sorted({world.results[n]["score"] for n in mine}, reverse=True)
            values = [f1_of(world, found, category, score) for score in scores]
            assert best.f1 == pytest.approx(max(values))
            assert best.threshold == scores[values.index(max(values))]
            parts = 2 * best.precision * best.recall / (best.precision + best.recall)
            assert parts == pytest.approx(best.f1)
    if thresholds.pooled.threshold is not None:
        assert f1_at(matches, thresholds.pooled.threshold) == pytest.approx(thresholds.pooled.f1)


def test_by_hand() -> None:
    """Of class 3: 3 objects, right, wrong, right, wrong. F1 from each score on: 2/4, 2/5, 4/6,
    4/7. Class 7 has no object, class 20 no right prediction."""
    matches = made(
        [0.9, 0.8, 0.7, 0.6, 0.95, 0.5],
        [1, 0, 0.6, 0, 0, 0],
        [0] * 6,
        [0, 0, 0, 0, 1, 2],
        [[3, 0, 1]],
    )
    thresholds = best_thresholds(matches)
    assert thresholds.by_class == {
        "3": BestF1(0.7, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "20": BestF1(None, 0.0, None, None),
    }
    assert thresholds.pooled == BestF1(0.7, 0.5, 0.5, 0.5)
    assert thresholds.of(np.array([20, 3, 7])).tolist() == [0.7, 0.7, 0.7]
    with pytest.raises(ValueError, match="no prediction was right"):
        Thresholds(BestF1(None, 0.0, None, None), {}).of(np.array([3]))
    assert f1_at(matches, np.array([1, 1, 0, 1, 1, 0])) == pytest.approx(2 / 6)
    assert f1_at(made([], [], [], [], [[0]]), 0.5) is None


def test_an_evaluation_shows_them(tmp_path: Path) -> None:
    found = evaluate_file(*write(small_world(), tmp_path))
    stored, lines = found.as_dict(), printed(found.table())
    assert max(map(len, lines)) <= 80
    best = stored["best_f1"]
    text = f"F1 (IoU 0.5) is largest from a score of {best['threshold']:.3f} on"
    assert any(text in line for line in lines)
    for row in stored["classes"]:
        line = next(line.split() for line in lines if line.split()[:1] == [row["name"]])
        assert line[-2:] == [f"{100 * row['F1']:.1f}", f"{row['threshold']:.3f}"]
