"""Duplicates against loops over pixels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from alignmask.evaluation.duplicates import (
    Duplicates,
    duplicates,
    duplicates_table,
    rival_pairs,
    suppress_duplicates,
)
from alignmask.evaluation.results_file import Results
from alignmask.model.suppression import iou_within_classes, suppress, without_second_masks
from tests.evaluation.worlds import World, box_mask, worlds

SIZE = (20, 30)


def checked(world: World) -> Results:
    return Results("test", [{**entry, "number": n} for n, entry in enumerate(world.results)])


def overlap(one: dict, other: dict) -> float:
    a_HW, b_HW = (mask_utils.decode(entry["segmentation"]).astype(bool) for entry in (one, other))
    either = (a_HW | b_HW).sum()
    return (a_HW & b_HW).sum() / either if either else 0.0


@settings(max_examples=50)
@given(worlds())
def test_pairs_and_duplicates(world: World) -> None:
    entries = world.results
    pairs = {
        (n, m)
        for n, m in combinations(range(len(entries)), 2)
        if all(entries[n][key] == entries[m][key] for key in ("image_id", "category_id"))
        and overlap(entries[n], entries[m]) > 0.5
    }
    rivals_P2 = rival_pairs(checked(world))
    assert set(map(tuple, rivals_P2.tolist())) == pairs
    assert len(rivals_P2) == len(pairs)
    scores_N = np.array([entry["score"] for entry in entries], float)
    expected = [
        any(
            {n, m} in ({*pair} for pair in pairs)
            and (scores_N[m] > scores_N[n] or (scores_N[m] == scores_N[n] and m < n))
            for m in range(len(entries))
        )
        for n in range(len(entries))
    ]
    assert duplicates(scores_N, rivals_P2).tolist() == expected


@settings(max_examples=50)
@given(worlds(), st.sampled_from([0.0, 0.3, 0.5]))
def test_hard_suppression_by_boxes_keeps_what_that_of_all_pairs_keeps(
    world: World, threshold: float
) -> None:
    for image in world.sizes:
        mine = [entry for entry in world.results if entry["image_id"] == image]
        rles = [entry["segmentation"] for entry in mine]
        score_N = np.array([entry["score"] for entry in mine])
        class_N = np.array([entry["category_id"] for entry in mine])
        xywh_N4 = np.array([mask_utils.toBbox(rle) for rle in rles]).reshape(-1, 4)
        box_N4 = np.concatenate((xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]), axis=1)
        kept_N = without_second_masks(score_N, class_N, rles, box_N4, threshold)
        new_N = suppress(score_N, iou_within_classes(rles, class_N), "hard", threshold)
        assert kept_N.tolist() == (new_N >= 0).tolist()


@settings(max_examples=50)
@given(worlds())
def test_after_suppression_there_are_none(world: World) -> None:
    before = checked(world)
    after = suppress_duplicates(before, "hard")
    assert rival_pairs(after).shape == (0, 2)
    assert len(before.entries) - len(after.entries) == after.ignored.get("duplicates", 0)
    numbers = [entry["number"] for entry in after.entries]
    assert numbers == sorted(numbers)
    assert after.entries == [before.entries[number] for number in numbers]


def test_suppression_stays_within_image_and_class() -> None:
    world = World({1: SIZE, 2: SIZE}, {3: "a", 7: "b"})
    mask_HW, shifted_HW = box_mask(SIZE, 0, 0, 10, 10), box_mask(SIZE, 0, 1, 10, 11)
    world.predict(1, 3, mask_HW, 0.5)
    world.predict(1, 7, mask_HW, 0.4)
    world.predict(2, 3, mask_HW, 0.3)
    world.predict(1, 3, shifted_HW, 0.9)
    results = checked(world)
    hard, soft = suppress_duplicates(results, "hard"), suppress_duplicates(results, "soft")
    assert [entry["score"] for entry in hard.entries] == [0.4, 0.3, 0.9]
    assert hard.ignored == {"duplicates": 1}
    assert [entry["score"] for entry in soft.entries] == [0.5 * (1 - 90 / 110), 0.4, 0.3, 0.9]
    assert suppress_duplicates(results, "off") is results


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_scores_below_zero_are_ranked_as_well(scores: list[float]) -> None:
    """Results files of other models have such scores: the best of four masks of one object
    stays."""
    world = World({1: SIZE}, {1: "a"})
    for score in scores:
        world.predict(1, 1, box_mask(SIZE, 2, 2, 9, 9), score)
    assert [entry["score"] for entry in suppress_duplicates(checked(world), "hard").entries] == [
        max(scores)
    ]


def test_soft_suppression_refuses_scores_below_zero() -> None:
    world = World({1: SIZE}, {1: "a"})
    world.predict(1, 1, box_mask(SIZE, 2, 2, 9, 9), -0.5)
    with pytest.raises(ValueError, match=r"test: soft suppression .* got -0\.5"):
        suppress_duplicates(checked(world), "soft")


def test_the_table_names_its_rows_if_there_are_several() -> None:
    row = {"all": Duplicates(50, 5), "top 2 %": Duplicates(0, 0), "top 10 %": Duplicates(4, 1)}
    for counted, names in (
        ({"": row}, []),
        ({"class": row, "class*mask": row}, ["class", "class*mask"]),
    ):
        table = duplicates_table(counted)
        headings = [str(column.header) for column in table.columns]
        assert headings == ["score"] * bool(names) + ["score >= 0.5", "top 2 %", "top 10 %"]
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        if names:
            assert columns.pop(0) == names
        assert columns == [
            ["10.0 (50)"] * len(counted),
            ["- (0)"] * len(counted),
            ["25.0 (4)"] * len(counted),
        ]
