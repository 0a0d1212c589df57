"""Rank inversions against loops over all pairs; the sheet that shows them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from alignmask.analysis.inversions import Panel, inversion_sheet, worst_inversions
from alignmask.evaluation.alignment import ScoreIoU, score_iou_pairs, top_predictions
from alignmask.pictures.drawing import OVERLAP, PREDICTION, TRUTH, draw_overlap
from tests.evaluation.test_alignment import pairs_of
from tests.evaluation.worlds import World, box_mask, worlds, write


def oracle(pairs: ScoreIoU) -> dict[int, dict[tuple[int, int], float]]:
    """Severity of every inversion (high, low), by image."""
    score, iou, truth = (
        pairs.scores_N.tolist(),
        pairs.iou_any_class_N.tolist(),
        pairs.truth_any_class_N.tolist(),
    )
    by_image = defaultdict(list)
    for n in top_predictions(pairs, 1.0).tolist():
        if iou[n] >= 0.1:
            by_image[int(pairs.image_ids_N[n])].append(n)
    found: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
    for image, mine in by_image.items():
        for low in mine:
            if any(
                truth[n] == truth[low] and score[n] > score[low] and iou[n] >= iou[low] - 0.05
                for n in mine
            ):
                continue
            for high in mine:
                if score[high] > score[low] and iou[high] < iou[low]:
                    found[image][high, low] = (score[high] - score[low]) * (iou[low] - iou[high])
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(worlds())
def test_equals_the_oracle(tmp_path: Path, world: World) -> None:
    pairs = score_iou_pairs(*write(world, tmp_path))
    expected = oracle(pairs)
    found = worst_inversions(pairs, 1000)
    assert [i.severity for i in found] == sorted(
        (max(of.values()) for of in expected.values()), reverse=True
    )
    assert {i.image_id for i in found} == set(expected)
    for inversion in found:
        assert expected[inversion.image_id][inversion.high, inversion.low] == inversion.severity
    assert worst_inversions(pairs, 1) == found[:1]
    assert worst_inversions(pairs, 0) == []


def pairs_with_truths(scores: list[float], ious: list[float], truths: list[int]) -> ScoreIoU:
    return replace(pairs_of(scores, ious), truth_any_class_N=np.array(truths))


def test_a_poor_mask_before_a_good_one() -> None:
    (found,) = worst_inversions(pairs_with_truths([0.9, 0.2, 0.5], [0.3, 0.8, 0.7], [1, 2, 3]), 8)
    assert (found.high, found.low) == (0, 1)
    assert found.severity == pytest.approx(0.7 * 0.5)


@pytest.mark.parametrize(("iou", "fault"), [(0.84, False), (0.86, True)])
def test_a_duplicate_with_a_low_score_is_no_fault(iou: float, fault: bool) -> None:
    """Object 1 has a confident mask of IoU 0.8. A second one of it with a low score is a fault if
    it is clearly better."""
    pairs = pairs_with_truths([0.9, 0.7, 0.1], [0.8, 0.3, iou], [1, 2, 1])
    assert bool(worst_inversions(pairs, 8)) == fault


def test_the_same_object_can_be_inverted() -> None:
    (found,) = worst_inversions(pairs_with_truths([0.9, 0.1], [0.5, 0.9], [1, 1]), 8)
    assert (found.high, found.low) == (0, 1)


@pytest.mark.parametrize(
    ("scores", "ious"),
    [([], []), ([0.5], [0.5]), ([0.9, 0.1], [0.09, 0.9]), ([0.5, 0.5], [0.2, 0.9])],
)
def test_nothing_to_find(scores: list[float], ious: list[float]) -> None:
    assert worst_inversions(pairs_of(scores, ious), 8) == []


# -- pictures
# --------------------------------------------------------------------------------------------------


def test_overlap_has_the_papers_colours() -> None:
    grey_HWC = np.full((4, 4, 3), 100, np.uint8)
    truth_HW, prediction_HW = box_mask((4, 4), 0, 0, 2, 3), box_mask((4, 4), 0, 1, 3, 4)
    picture_HWC = np.asarray(draw_overlap(grey_HWC, truth_HW, prediction_HW, opacity=1.0))
    for y in range(4):
        for x in range(4):
            colours = {(1, 0): TRUTH, (0, 1): PREDICTION, (1, 1): OVERLAP, (0, 0): (100, 100, 100)}
            assert (
                tuple(picture_HWC[y, x]) == colours[int(truth_HW[y, x]), int(prediction_HW[y, x])]
            )
    assert (grey_HWC == 100).all()


def test_overlap_of_other_sizes_is_refused() -> None:
    image_HWC, mask_HW = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool)
    with pytest.raises(
        ValueError, match=r"image \[4, 5, 3\], ground truth \[4, 5\] and prediction \[5, 4\] differ"
    ):
        draw_overlap(image_HWC, mask_HW, mask_HW.T)


def panel(
    size: tuple[int, int], truth: tuple[int, int, int, int], caption: str = "score 0.9"
) -> Panel:
    image_HWC = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    return Panel(image_HWC, box_mask(size, *truth), box_mask(size, *truth), caption)


def sheet_pixels(both: list[tuple[Panel, Panel]], **options: object) -> np.ndarray:
    return np.asarray(inversion_sheet(both, title="a model", **options))  # type: ignore[arg-type]


def yellow(pixels_HWC: np.ndarray) -> int:
    """Pixels more yellow than blue, which no grey and no text is."""
    return int((pixels_HWC[..., 0].astype(int) - pixels_HWC[..., 2] > 60).sum())


@pytest.mark.parametrize(("count", "width", "lines"), [(1, 632, 1), (2, 1256, 1), (3, 1256, 2)])
def test_sheet(count: int, width: int, lines: int) -> None:
    square = panel((60, 60), (0, 0, 60, 60))
    pixels_HWC = sheet_pixels([(square, square)] * count)
    assert pixels_HWC.shape == (66 + lines * 328, width, 3)
    assert yellow(pixels_HWC[66:]) >= count * 2 * 290 * 290


def test_sheet_shows_small_masks_large() -> None:
    """Both panels show the same part of the image: around the masks of both, and no less than a
    third of its sides."""
    small, other = panel((300, 600), (10, 20, 20, 40)), panel((300, 600), (30, 60, 40, 80))
    pixels_HWC = sheet_pixels([(small, other)])
    assert pixels_HWC.shape[0] == 66 + 28 + 150
    assert yellow(pixels_HWC[86:, :308]) == pytest.approx(15 * 30, rel=0.3)


@pytest.mark.parametrize("truth", [(0, 0, 0, 0), (0, 0, 1, 1), (99, 0, 100, 7), (0, 0, 100, 7)])
def test_sheet_of_masks_at_the_border(truth: tuple[int, int, int, int]) -> None:
    edge = panel((100, 7), truth, caption="a very long caption " * 20)
    assert sheet_pixels([(edge, edge)]).shape[1] == 632


def test_sheet_of_nothing_says_so() -> None:
    assert (sheet_pixels([])[66:] < 128).any()
