"""Matching against loops over pixels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as mask_utils

from alignmask.config import OFFICIAL_LIMIT
from alignmask.evaluation.matches import match
from alignmask.evaluation.results_file import Results, load_ground_truth, load_results
from tests.evaluation.worlds import World, box_mask, small_world, worlds, write

SIZE = (20, 30)
THRESHOLDS = (0.0, 0.5, 0.75)


def pixels(entry: dict[str, Any]) -> np.ndarray:
    return mask_utils.decode(entry["segmentation"]).astype(bool)


def overlap(prediction_HW: np.ndarray, truth_HW: np.ndarray, crowd: bool) -> float:
    """Of a crowd region: the share of the prediction that lies in it."""
    shared = int((prediction_HW & truth_HW).sum())
    whole = int(prediction_HW.sum()) if crowd else int((prediction_HW | truth_HW).sum())
    return shared / whole if whole else 0.0


def oracle(world: World, threshold: float) -> dict[int, float | None]:
    """Position of each matched-or-wrong prediction -> its IoU (0: wrong)."""
    predictions: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position in sorted(
        range(len(world.results)), key=lambda n: (-world.results[n]["score"], n)
    ):
        entry = world.results[position]
        predictions[entry["image_id"], entry["category_id"]].append(position)
    found = {}
    for place, positions in predictions.items():
        truths = [a for a in world.annotations if (a["image_id"], a["category_id"]) == place]
        masks = [pixels(a) for a in truths]
        free = [not a["iscrowd"] for a in truths]
        for position in positions[:100]:
            mask_HW = pixels(world.results[position])
            ious = [
                overlap(mask_HW, m, bool(a["iscrowd"])) for a, m in zip(truths, masks, strict=True)
            ]
            enough = [iou >= threshold if threshold else iou > 0 for iou in ious]
            candidates = [m for m in range(len(truths)) if free[m] and enough[m]]
            if candidates:
                # Of equal ones the official tool takes the last.
                best = max(candidates, key=lambda m: (ious[m], m))
                free[best] = False
                found[position] = ious[best]
            elif not any(truth["iscrowd"] and ok for truth, ok in zip(truths, enough, strict=True)):
                found[position] = 0.0
    return found


def loaded(world: World, tmp_path) -> tuple[Any, Results]:
    annotations, results = write(world, tmp_path)
    ground_truth = load_ground_truth(annotations)
    return ground_truth, load_results(results, ground_truth)


@settings(max_examples=20)
@given(worlds())
def test_equals_loops_over_pixels(tmp_path_factory, world: World) -> None:
    ground_truth, results = loaded(world, tmp_path_factory.mktemp("world"))
    order = sorted(range(len(world.results)), key=lambda n: (-world.results[n]["score"], n))
    for threshold, matches in match(ground_truth, results, THRESHOLDS).items():
        expected = oracle(world, threshold)
        assert matches.position_N.tolist() == sorted(expected)
        assert matches.iou_N.tolist() == [expected[n] for n in matches.position_N.tolist()]
        assert sum(matches.left_out.values()) == len(world.results) - len(expected)
        entries = [world.results[n] for n in matches.position_N.tolist()]
        assert matches.scores_N.tolist() == [entry["score"] for entry in entries]
        assert matches.area_N.tolist() == [pixels(entry).sum() for entry in entries]
        assert [matches.image_ids[i] for i in matches.image_N] == [
            entry["image_id"] for entry in entries
        ]
        assert [matches.category_ids[c] for c in matches.class_N] == [
            entry["category_id"] for entry in entries
        ]
        for n, rank, class_rank in zip(
            matches.position_N, matches.rank_N, matches.class_rank_N, strict=True
        ):
            better = [world.results[m] for m in order[: order.index(n)]]
            better = [
                entry for entry in better if entry["image_id"] == world.results[n]["image_id"]
            ]
            assert rank == len(better)
            assert class_rank == sum(
                e["category_id"] == world.results[n]["category_id"] for e in better
            )
        for i, image in enumerate(matches.image_ids):
            for c, category in enumerate(matches.category_ids):
                mine = [
                    a
                    for a in world.annotations
                    if (a["image_id"], a["category_id"]) == (image, category)
                ]
                assert matches.truths_IC[i, c] == sum(not a["iscrowd"] for a in mine)


def test_a_mask_that_touches_nothing_takes_no_object_away(tmp_path) -> None:
    world = World({1: SIZE}, {1: "a"})
    world.annotate(1, 1, box_mask(SIZE, 0, 0, 10, 10))
    world.predict(1, 1, box_mask(SIZE, 12, 12, 18, 18), 0.9)
    world.predict(1, 1, box_mask(SIZE, 0, 0, 10, 5), 0.8)
    world.predict(1, 1, box_mask(SIZE, 0, 0, 10, 10), 0.7)
    matches = match(*loaded(world, tmp_path))
    assert matches[0].iou_N.tolist() == [0, 0.5, 0]  # the last one is a second mask
    assert matches[0.75].iou_N.tolist() == [0, 0, 1]


def test_only_the_best_hundred_of_a_class_count(tmp_path) -> None:
    world = World({1: SIZE}, {1: "a", 2: "b"})
    for n in range(OFFICIAL_LIMIT + 3):
        world.predict(1, 1, box_mask(SIZE, 0, 0, 2, 2), n / 200)
    world.predict(1, 2, box_mask(SIZE, 0, 0, 2, 2), 0.0)
    matches = match(*loaded(world, tmp_path))[0.5]
    assert matches.position_N.tolist() == list(range(3, OFFICIAL_LIMIT + 4))
    assert matches.left_out == {"in a crowd region": 0, "after the best 100": 3}


def test_a_subset_is_what_its_images_alone_give(tmp_path) -> None:
    ground_truth, results = loaded(small_world(3, images=6), tmp_path)
    chosen = [27, 7, 47]
    part = match(ground_truth, results)[0.5].subset(chosen)
    alone = match(ground_truth.subset(chosen), results.subset(chosen))[0.5]
    assert part.image_ids == alone.image_ids == tuple(chosen)
    assert len(part.scores_N)
    for name in ("scores_N", "iou_N", "image_N", "class_N", "area_N", "truths_IC"):
        assert getattr(part, name).tolist() == getattr(alone, name).tolist(), name
    with pytest.raises(ValueError, match="no image has id 8"):
        match(ground_truth, results)[0.5].subset([8])


def test_the_official_tool_prints_nothing(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    match(*loaded(small_world(), tmp_path))
    assert capsys.readouterr().out == ""
