"""Non-maximum suppression against a loop over a list, and the IoUs against pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from alignmask.model.suppression import iou_within_classes, suppress, without_second_masks

SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])
OVERLAPS = st.sampled_from([0.0, 0.3, 0.5, 0.50001, 0.7, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 7))
    iou_NN = np.zeros((count, count))
    for row in range(count):
        for column in range(row):
            iou_NN[row, column] = iou_NN[column, row] = draw(OVERLAPS)
    return np.array([draw(SCORES) for _ in range(count)], float), iou_NN


def greedy(scores_N: np.ndarray, iou_NN: np.ndarray, threshold: float, soft: bool) -> list[float]:
    """Take the best out of a list, act on the rest of the list, again and again."""
    rest = [(float(score), n) for n, score in enumerate(scores_N)]
    result = [-1.0] * len(rest)
    while rest:
        best = max(rest, key=lambda item: (item[0], -item[1]))
        rest.remove(best)
        result[best[1]] = best[0]
        after = []
        for score, n in rest:
            overlap = iou_NN[best[1], n]
            if overlap <= threshold:
                after.append((score, n))
            elif soft:
                after.append((score * (1 - overlap), n))
        rest = after
    return result


@given(cases(), st.sampled_from([0.0, 0.3, 0.5, 0.7]), st.booleans())
def test_it_is_the_greedy_algorithm(
    case: tuple[np.ndarray, np.ndarray], threshold: float, soft: bool
) -> None:
    scores_N, iou_NN = case
    found = suppress(scores_N, iou_NN, "soft" if soft else "hard", threshold)
    assert found.tolist() == greedy(scores_N, iou_NN, threshold, soft)


def test_off_changes_nothing() -> None:
    scores_N = np.array([0.5, 0.9])
    assert suppress(scores_N, np.ones((2, 2)), "off", 0.5).tolist() == [0.5, 0.9]


def test_what_is_removed_removes_nothing() -> None:
    """A chain: the second covers the first and the third, which do not cover each other."""
    iou_NN = np.array([[0, 0.6, 0], [0.6, 0, 0.6], [0, 0.6, 0]])
    assert suppress(np.array([0.9, 0.8, 0.7]), iou_NN, "hard", 0.5).tolist() == [0.9, -1, 0.7]
    assert suppress(np.array([0.8, 0.9, 0.7]), iou_NN, "hard", 0.5).tolist() == [-1, 0.9, -1]


def test_a_lowered_score_loses_its_turn() -> None:
    """The second falls to 0.32 and below the third, which then acts on it once more."""
    iou_NN = np.array([[0, 0.6, 0], [0.6, 0, 0.75], [0, 0.75, 0]])
    found = suppress(np.array([0.9, 0.8, 0.7]), iou_NN, "soft", 0.5)
    assert found == pytest.approx([0.9, 0.8 * 0.4 * 0.25, 0.7], abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_ious_are_counted_in_pixels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    masks_NHW = generator.random((6, 9, 13)) < generator.random((6, 1, 1))
    masks_NHW[:, 0, 0] = True
    class_N = generator.integers(0, 2, 6)
    rles = [mask_utils.encode(np.asfortranarray(mask_HW.astype(np.uint8))) for mask_HW in masks_NHW]
    found = iou_within_classes(rles, class_N)
    for n in range(6):
        for m in range(6):
            both, either = (masks_NHW[n] & masks_NHW[m]).sum(), (masks_NHW[n] | masks_NHW[m]).sum()
            assert found[n, m] == (both / either if class_N[n] == class_N[m] else 0)


def test_no_prediction_has_no_pairs() -> None:
    assert iou_within_classes([], np.zeros(0, int)).shape == (0, 0)


def test_a_small_mask_inside_a_large_one_is_no_second_mask() -> None:
    """All of it is covered, but the IoU is 0.2, whichever has the higher score."""
    large_HW, small_HW = np.zeros((2, 10, 10), np.uint8)
    large_HW[:] = small_HW[:2] = 1
    rles = [mask_utils.encode(np.asfortranarray(mask_HW)) for mask_HW in (large_HW, small_HW)]
    boxes_N4 = np.array([[0, 0, 10, 10], [0, 0, 10, 2]])

    for scores in ([0.9, 0.8], [0.8, 0.9]):
        arguments = (np.array(scores), np.zeros(2), rles, boxes_N4)
        assert without_second_masks(*arguments, 0.2).all()
        assert without_second_masks(*arguments, 0.19).tolist() == [s == 0.9 for s in scores]
