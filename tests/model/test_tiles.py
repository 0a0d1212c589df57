"""Tiles cover an image, and what they show in parts becomes whole again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from alignmask.config import DataConfig
from alignmask.data.rle import encode
from alignmask.model import sparse
from alignmask.model.sparse import SparseInstances
from alignmask.model.tiles import Tiles, Window, merge, pieces, tiles_for, windows
from tests.covers import covers


@given(st.integers(1, 400), st.integers(1, 400), st.integers(32, 200), st.floats(0, 0.9))
def test_windows_cover_the_image_and_overlap(
    height: int, width: int, tile: int, overlap: float
) -> None:
    found = windows((height, width), Tiles(tile, overlap))
    covered = np.zeros((height, width), bool)
    for top, left, h, w in found:
        assert (h, w) == (min(tile, height), min(tile, width))
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        covered[top : top + h, left : left + w] = True
    assert covered.all()
    assert len(set(found)) == len(found)
    for starts, side in (
        (sorted({w.top for w in found}), min(tile, height)),
        (sorted({w.left for w in found}), min(tile, width)),
    ):
        for one, two in itertools.pairwise(starts):
            assert one + side - two >= int(overlap * side) - 1


@pytest.mark.parametrize(("tile", "overlap"), [(31, 0.2), (64, 1.0), (64, -0.1)])
def test_windows_that_cannot_be(tile: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="32 pixels or more and an overlap of 0 to less than 1"):
        tiles_for(DataConfig(), tile, overlap)


@covers("data.tile", "data.tile_overlap")
def test_what_is_asked_for_comes_before_the_settings() -> None:
    data = DataConfig()
    assert tiles_for(data) is None
    assert tiles_for(data, 64) == (64, 0.2)
    assert tiles_for(data, "whole", 0.3) is None
    data = DataConfig(tile=128, tile_overlap=0.4)
    assert tiles_for(data) == (128, 0.4)
    assert tiles_for(data, 64) == (64, 0.4)
    assert tiles_for(data, "auto", 0) == (128, 0)
    assert tiles_for(data, "whole") is None
    for wrong in (None, "64", "all", 64.5):
        with pytest.raises(ValueError, match="expected auto, whole, or a side in pixels, got"):
            tiles_for(data, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 16 and 0\.2"):
        tiles_for(DataConfig(tile=16))


def seen(
    masks_NHW: np.ndarray, window: Window, labels: list[int], scores: list[float]
) -> SparseInstances:
    """What a perfect model finds in a tile."""
    top, left, h, w = window
    part = torch.from_numpy(masks_NHW[:, top : top + h, left : left + w])
    there = part.flatten(1).any(1)
    part = part[there]
    boxes = torch.zeros(len(part), 4)
    for n, mask in enumerate(part):
        y, x = mask.nonzero(as_tuple=True)
        boxes[n] = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
    score = torch.tensor(scores)[there]
    rles, label = encode(part), torch.tensor(labels)[there]
    return SparseInstances(score, label, rles, boxes, score, torch.ones_like(score), (h, w))


def merged(masks_NHW, labels, scores, tile=64, overlap=0.25):
    size = masks_NHW.shape[1:]
    found = []
    for window in windows(size, Tiles(tile, overlap)):
        found += pieces(seen(masks_NHW, window, labels, scores), window, size)
    return merge(found, size, "class")


def decoded(found) -> list[np.ndarray]:
    return [mask_utils.decode(rle).astype(bool) for rle in found.rles]


@given(st.integers(0, 10**6), st.integers(32, 90), st.sampled_from([0.2, 0.4]))
def test_a_perfect_model_finds_what_is_there(seed: int, tile: int, overlap: float) -> None:
    """Disjoint rectangles from a pixel to the whole width, of two classes that touch."""
    rng = np.random.default_rng(seed)
    size, free = (150, 170), np.ones((150, 170), bool)
    masks = []
    for _ in range(12):
        top, left = rng.integers(0, 140), rng.integers(0, 160)
        height, width = rng.integers(1, (12, 150)[rng.integers(2)]), rng.integers(1, 60)
        mask = np.zeros(size, bool)
        mask[top : top + height, left : left + width] = True
        if (mask & ~free).any():
            continue
        free &= ~mask
        masks.append(mask)
    masks_NHW = np.array(masks)
    labels = rng.integers(0, 2, len(masks)).tolist()
    scores = rng.permutation(np.linspace(0.1, 0.9, len(masks))).tolist()
    found = merged(masks_NHW, labels, scores, tile, overlap)
    order = np.argsort(scores)[::-1]
    assert len(found) == len(masks)
    assert found.scores_N.tolist() == pytest.approx([scores[n] for n in order])
    assert found.labels_N.tolist() == [labels[n] for n in order]
    for mask_HW, n in zip(decoded(found), order, strict=True):
        assert np.array_equal(mask_HW, masks_NHW[n])
    for (x1, y1, x2, y2), n in zip(found.boxes_N4.int().tolist(), order, strict=True):
        box = np.zeros(size, bool)
        box[y1:y2, x1:x2] = True
        assert np.array_equal(box, masks_NHW[n])  # they are rectangles


def one(mask_hw: np.ndarray, window: Window, size, score=0.5, label=0, mask_score=1.0):
    y, x = np.nonzero(mask_hw)
    box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float()
    found = SparseInstances(
        torch.tensor([score]), torch.tensor([label]), encode(torch.from_numpy(mask_hw)[None]), box,
        torch.tensor([score]), torch.tensor([mask_score]), window[2:],
    )  # fmt: skip
    return pieces(found, window, size)[0]


SIZE = (40, 100)
LEFT, RIGHT = Window(0, 0, 40, 60), Window(0, 40, 40, 60)


def rectangle(x1: int, x2: int) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[10:20, x1:x2] = True
    return mask


def test_what_a_border_cuts_is_said() -> None:
    assert one(rectangle(20, 60), LEFT, SIZE).cut
    assert not one(rectangle(0, 59), LEFT, SIZE).cut  # the image's own border
    assert one(rectangle(0, 20), RIGHT, SIZE).cut
    assert not one(rectangle(1, 60), RIGHT, SIZE).cut
    # An image that is one pixel larger than a tile.
    second = Window(1, 1, 40, 60)
    assert one(rectangle(0, 20), second, (41, 61)).cut
    assert one(np.roll(rectangle(5, 20), -10, axis=0), second, (41, 61)).cut
    tall = np.zeros((40, 60), bool)
    tall[:, 5:9] = True
    assert not one(tall, LEFT, SIZE).cut


def test_a_whole_mask_stays_what_it_is() -> None:
    """The right tile shows all of it, the left one a part with a higher score."""
    part = one(rectangle(45, 60), LEFT, SIZE, score=0.9)
    whole = one(rectangle(5, 40), RIGHT, SIZE, score=0.4)
    found = merge([part, whole], SIZE, "class")
    assert found.scores_N.tolist() == [pytest.approx(0.4)]
    assert decoded(found)[0].sum() == 350


def test_parts_become_their_union_with_mean_scores() -> None:
    """30 of 60 columns are common."""
    one_part = one(rectangle(10, 60), LEFT, SIZE, score=0.9, mask_score=0.8)
    other = one(rectangle(0, 30), RIGHT, SIZE, score=0.4, mask_score=0.6)
    found = merge([one_part, other], SIZE, "class*mask")
    assert len(found) == 1
    expected = np.zeros(SIZE, bool)
    expected[10:20, 10:70] = True
    assert np.array_equal(decoded(found)[0], expected)
    class_score, mask_score = (0.9 * 500 + 0.4 * 300) / 800, (0.8 * 500 + 0.6 * 300) / 800
    assert found.class_scores_N.tolist() == [pytest.approx(class_score)]
    assert found.mask_scores_N.tolist() == [pytest.approx(mask_score)]
    assert found.scores_N.tolist() == [pytest.approx(class_score * mask_score)]
    assert found.boxes_N4.tolist() == [[10, 10, 70, 20]]


@pytest.mark.parametrize(
    ("x1", "x2", "label", "count"),
    [
        (5, 15, 0, 1),  # the same columns 45 to 55
        (5, 15, 1, 2),  # another class
        (8, 18, 0, 1),  # IoU 7 / 13
        (9, 19, 0, 2),  # IoU 6 / 14
        (20, 30, 0, 2),  # elsewhere
    ],
)
def test_whole_masks_of_two_tiles(x1: int, x2: int, label: int, count: int) -> None:
    both = [one(rectangle(45, 55), LEFT, SIZE), one(rectangle(x1, x2), RIGHT, SIZE, 0.4, label)]
    assert len(merge(both, SIZE, "class")) == count


def test_second_masks_of_one_tile_are_left_to_suppression() -> None:
    both = [one(rectangle(5, 15), LEFT, SIZE), one(rectangle(5, 15), LEFT, SIZE, 0.4)]
    assert len(merge(both, SIZE, "class")) == 2


def test_nothing_found() -> None:
    found = merge([], SIZE, "class")
    assert len(found) == 0
    assert found.dense().masks_NHW.shape == (0, *SIZE)
    assert repr(found) == "SparseInstances(0 in 40 x 100 pixels)"


def test_masks_are_decoded_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((3, 90, 80), bool)
    for n in range(3):
        masks[n, 20 * n : 20 * n + 15, 10:70] = True
    found = merged(masks, [0, 1, 1], [0.3, 0.2, 0.1])
    assert np.array_equal(np.asarray(found.masks_NHW), masks)
    assert np.array_equal(found.masks_NHW[1].numpy(), masks[1])
    assert torch.equal(found.dense().masks_NHW, torch.from_numpy(masks))
    assert np.array_equal(np.asarray(found.masks_NHW[1:]), masks[1:])
    assert np.array_equal(np.asarray(found.masks_NHW[found.labels_N == 0]), masks[:1])
    assert np.array_equal(np.asarray(found[found.labels_N == 1].masks_NHW), masks[1:])
    monkeypatch.setattr(sparse, "DENSE_LIMIT", 3 * 90 * 80 - 1)
    with pytest.raises(ValueError, match="3 masks of 90 x 80 pixels have more than"):
        found.dense()
    assert found[:2].dense().masks_NHW.shape == (2, 90, 80)


def test_masks_of_more_than_4_gib_are_not_decoded_at_once() -> None:
    masks = sparse.LazyMasks([{}], (2**16, 2**16 + 1))
    with pytest.raises(ValueError, match=r"1 masks of 65536 x 65537 .* more than 4 GiB"):
        np.asarray(masks)


def test_a_large_image_takes_no_memory_for_its_pixels() -> None:
    """100 million pixels; a dense mask would have 100 MB."""
    import tracemalloc

    size = (10_000, 10_000)
    window = Window(9_000, 9_488, 512, 512)
    mask = np.zeros((512, 512), bool)
    mask[100:130, 50:90] = True
    piece = one(mask, window, size)
    tracemalloc.start()
    found = merge([piece], size, "class")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
    assert mask_utils.area(found.rles[0]) == 1200
    assert mask_utils.toBbox(found.rles[0]).tolist() == [9538, 9100, 40, 30]
