"""Overlays: what is coloured, what is written, what is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alignmask.pictures import drawing, fonts
from alignmask.pictures.drawing import colour, draw_instances
from tests.evaluation.worlds import box_mask

SIZE = (40, 60)
GREY = np.full((*SIZE, 3), 128, np.uint8)


def found(
    masks: list[np.ndarray], scores: list[float] | None = None, labels: list[int] | None = None
) -> Any:
    n = len(masks)
    parts: dict[str, Any] = {
        "masks_NHW": np.stack(masks) if masks else np.zeros((0, *SIZE), bool),
        "labels_N": np.array(labels if labels is not None else [0] * n, np.int64),
    }
    return SimpleNamespace(
        **parts, **({} if scores is None else {"scores_N": np.array(scores, float)})
    )


def changed(picture: Image.Image, image_HWC: np.ndarray = GREY) -> np.ndarray:
    return (np.asarray(picture) != image_HWC).any(axis=2)


def test_a_mask_is_filled_and_outlined_and_nothing_else_is_touched() -> None:
    mask_HW = box_mask(SIZE, 5, 10, 25, 40)
    picture = draw_instances(GREY, found([mask_HW]), ["a"], min_side=1, labels=False, opacity=0.25)
    np.testing.assert_array_equal(changed(picture), mask_HW)
    pixels_HWC = np.asarray(picture)
    inside, edge = pixels_HWC[15, 20], pixels_HWC[5, 20]
    np.testing.assert_array_equal(edge, colour(0))
    np.testing.assert_array_equal(
        inside, np.round(0.75 * 128 + 0.25 * np.array(colour(0), np.float32))
    )


def test_a_small_image_is_enlarged_by_a_whole_factor_and_a_large_one_is_not() -> None:
    mask_HW = box_mask(SIZE, 5, 10, 25, 40)
    picture = draw_instances(GREY, found([mask_HW]), ["a"], min_side=130, labels=False)
    assert picture.size == (180, 120)
    np.testing.assert_array_equal(
        changed(picture, np.full((120, 180, 3), 128)), mask_HW.repeat(3, 0).repeat(3, 1)
    )
    assert draw_instances(GREY, found([]), ["a"], min_side=60).size == (60, 40)


def test_small_instances_lie_on_top_of_large_ones() -> None:
    small, large = box_mask(SIZE, 10, 10, 20, 20), box_mask(SIZE, 0, 0, 40, 60)
    for masks in ([small, large], [large, small]):
        pixels_HWC = np.asarray(draw_instances(GREY, found(masks), ["a"], min_side=1, labels=False))
        np.testing.assert_array_equal(pixels_HWC[10, 15], colour(0 if masks[0] is small else 1))


def test_of_alike_instances_the_most_confident_lies_on_top_and_colours_do_not_mix() -> None:
    masks = [
        box_mask(SIZE, 10, 10, 30, 40),
        box_mask(SIZE, 11, 10, 30, 40),
        box_mask(SIZE, 10, 11, 30, 40),
    ]
    alone = np.asarray(
        draw_instances(GREY, found(masks[1:2], [0.9]), ["a"], min_side=1, labels=False)
    )
    crowded = np.asarray(
        draw_instances(GREY, found(masks, [0.5, 0.9, 0.7]), ["a"], min_side=1, labels=False)
    )
    np.testing.assert_array_equal(crowded[masks[1]], alone[masks[1]])


def test_the_threshold_is_inclusive_and_colours_follow_the_score() -> None:
    masks = [box_mask(SIZE, 0, 10 * k, 10, 10 * k + 9) for k in range(3)]
    instances = found(masks, [0.5, 0.4, 0.9])
    pixels_HWC = np.asarray(
        draw_instances(GREY, instances, ["a"], min_side=1, labels=False, threshold=0.5)
    )
    assert [tuple(pixels_HWC[0, 10 * k + 4]) for k in range(3)] == [
        colour(1),
        (128, 128, 128),
        colour(0),
    ]


def test_colours_tell_classes_apart_on_request() -> None:
    """Two cats have the colour of cats, in this picture and in one where a dog is the best."""
    masks = [box_mask(SIZE, 0, 10 * k, 10, 10 * k + 9) for k in range(3)]
    for scores in ([0.9, 0.8, 0.7], [0.7, 0.8, 0.9]):
        instances = found(masks, scores, [2, 0, 2])
        options = {"min_side": 1, "labels": False}
        by_class, by_instance = (
            np.asarray(draw_instances(GREY, instances, ["a", "b", "c"], **options, **more))
            for more in ({"colours": "class"}, {})
        )
        edges = [tuple(by_class[0, 10 * k + 4]) for k in range(3)]
        assert edges == [colour(2), colour(0), colour(2)]
        best_first = [colour(0), colour(1), colour(2)]
        edges = [tuple(by_instance[0, 10 * k + 4]) for k in range(3)]
        assert edges == (best_first if scores[0] == 0.9 else best_first[::-1])
    assert (by_class != by_instance).any(axis=2)[masks[1]].any()


@pytest.mark.parametrize("colours", ["instance", "class"])
def test_a_label_can_be_read_on_masks_of_its_own_colour(colours: str) -> None:
    """It stands on an area of the colour, in a frame and letters that differ from it by 4.5:1 and
    more, as WCAG asks for text. The image is covered by masks of the same class."""
    masks = [box_mask(SIZE, 0, 0, 40, 60), box_mask(SIZE, 20, 5, 39, 55)]
    for label in range(12):
        instances = found(masks, [0.9, 0.8], [label, label])
        picture = draw_instances(GREY, instances, ["x"] * 12, min_side=480, colours=colours)
        paints = [colour(label)] * 2 if colours == "class" else [colour(0), colour(1)]
        for paint, (x, y) in zip(paints, ((0, 0), (40, 159)), strict=True):
            # The box ends where its instance begins, or at the picture's edge.
            near_HWC = np.asarray(picture)[max(0, y - 30) : y + 30, x : x + 60].reshape(-1, 3)
            ink = [i for i in ((0, 0, 0), (255, 255, 255)) if (near_HWC == i).all(1).sum() > 50]
            assert len(ink) == 1
            assert contrast(ink[0], paint) > 4.5
            assert (near_HWC == paint).all(1).sum() > 50


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """WCAG 2's ratio of two colours."""

    def luminance(rgb: tuple[int, int, int]) -> float:
        linear = [
            c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for value in rgb
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def texts(
    monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any
) -> list[tuple[str, float, float]]:
    """What is written where (x, y)."""
    written = []
    original = drawing.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        drawing.ImageDraw.ImageDraw, "text",
        lambda self, xy, text, **more: (written.append((text, *xy)), original(self, xy, text, **more)),
    )  # fmt: skip
    draw_instances(*arguments, **options)
    monkeypatch.undo()
    return written


def test_names_and_scores_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [box_mask(SIZE, 20, 2, 30, 10), box_mask(SIZE, 20, 35, 30, 45)]
    with_scores = found(masks, [0.123, 0.987], [1, 0])
    words = texts(monkeypatch, GREY, with_scores, ["cat", "naïve übergröße"])
    assert [text for text, *_ in words] == ["cat 0.99", "naïve übergröße 0.12"]
    assert [
        text for text, *_ in texts(monkeypatch, GREY, with_scores, ["cat", "dog"], labels=False)
    ] == []
    one_class = found(masks, [0.123, 0.987])
    assert [text for text, *_ in texts(monkeypatch, GREY, one_class, ["cell"])] == ["0.99", "0.12"]
    truth = found(masks, None, [1, 0])
    assert [text for text, *_ in texts(monkeypatch, GREY, truth, ["cat", "dog"])] == ["dog", "cat"]
    assert texts(monkeypatch, GREY, found(masks), ["cell"]) == []


def test_trusted_instances_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check mark before the name; the contours of the others are dashed, half of it outline."""
    masks = [box_mask(SIZE, 2, 2, 38, 26), box_mask(SIZE, 2, 32, 38, 56)]
    instances = found(masks, [0.5, 0.9], [0, 1])
    plain = draw_instances(GREY, instances, ["cat", "dog"], min_side=1, labels=False)
    instances.trusted_N = np.array([True, False])
    picture = draw_instances(GREY, instances, ["cat", "dog"], min_side=1, labels=False)
    words = [text for text, *_ in texts(monkeypatch, GREY, instances, ["cat", "dog"])]
    assert words == ["dog 0.90", "✓ cat 0.50"]
    best, second = np.array(colour(0)), np.array(colour(1))  # by score: the dog comes first
    pixels_HWC, solid_HWC = np.asarray(picture), np.asarray(plain)
    edge = masks[1] & (solid_HWC == best).all(axis=2)
    dashes = (pixels_HWC[edge] == best).all(axis=1)
    assert 0.35 < dashes.mean() < 0.65
    for side in (pixels_HWC[2, 32:56], pixels_HWC[2:38, 32]):  # along every side
        drawn = (side == best).all(axis=1)
        assert 2 <= (np.diff(drawn.astype(int)) != 0).sum()
    np.testing.assert_array_equal(pixels_HWC[masks[0]], solid_HWC[masks[0]])
    assert (pixels_HWC[2, 2:26] == second).all()
    assert [t for t, *_ in texts(monkeypatch, GREY, instances, ["cell"] * 2, threshold=0.6)] == [
        "cell 0.90"
    ]


def test_a_text_stands_where_the_instance_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above its highest pixel, though its box begins far to the left."""
    mask_HW = box_mask(SIZE, 30, 0, 40, 60) | box_mask(SIZE, 20, 30, 30, 34)
    ((_, x, y),) = texts(monkeypatch, GREY, found([mask_HW], [0.5]), ["a"], min_side=600)
    assert 300 <= x < 310
    assert 170 < y < 200


@pytest.mark.parametrize("corner", [(0, 0), (0, 50), (35, 50), (35, 0)])
def test_texts_stay_inside_the_picture(
    monkeypatch: pytest.MonkeyPatch, corner: tuple[int, int]
) -> None:
    top, left = corner
    instances = found([box_mask(SIZE, top, left, top + 5, left + 10)], [0.5], [1])
    picture = draw_instances(GREY, instances, ["cat", "a long name"])
    letters = fonts.font(max(11, round(max(picture.size) / 45)))
    ((text, x, y),) = texts(monkeypatch, GREY, instances, ["cat", "a long name"])
    x0, y0, x1, y1 = letters.getbbox(text)
    assert x + x0 >= 0
    assert y + y0 >= 0
    assert x + x1 <= picture.width
    assert y + y1 <= picture.height


def test_a_text_that_would_cover_another_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [
        box_mask(SIZE, 20, 20, 30, 30),
        box_mask(SIZE, 20, 21, 30, 31),
        box_mask(SIZE, 36, 20, 39, 30),
    ]
    words = texts(monkeypatch, GREY, found(masks, [0.3, 0.9, 0.5]), ["cell"])
    assert [text for text, *_ in words] == ["0.90", "0.50"]


def test_empty_masks_and_no_instances_draw_nothing() -> None:
    nothing = np.zeros(SIZE, bool)
    assert not changed(draw_instances(GREY, found([nothing], [0.9]), ["a"], min_side=1)).any()
    assert not changed(draw_instances(GREY, found([], []), ["a"], min_side=1)).any()


def test_a_single_pixel_shows() -> None:
    mask_HW = box_mask(SIZE, 39, 59, 40, 60)
    np.testing.assert_array_equal(
        changed(draw_instances(GREY, found([mask_HW]), ["a"], min_side=1)), mask_HW
    )


def test_torch_tensors_are_drawn_alike() -> None:
    masks = [box_mask(SIZE, 5, 10, 25, 40)]
    arrays = found(masks, [0.5])
    tensors = SimpleNamespace(
        **{name: torch.from_numpy(value) for name, value in vars(arrays).items()}
    )
    first, second = (
        np.asarray(draw_instances(GREY, instances, ["a"])) for instances in (arrays, tensors)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (GREY.astype(np.float32), [0], r"expected a uint8 image \[H, W, 3\], got float32"),
        (GREY[..., 0], [0], r"expected a uint8 image"),
        (GREY[:20], [0], r"expected masks \[1, 20, 60\], got \[1, 40, 60\]"),
        (GREY, [2], r"labels must be 0 \.\. 1"),
        (GREY, [-1], r"labels must be 0 \.\. 1"),
    ],
)
def test_what_does_not_fit_is_refused(image: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_instances(image, found([box_mask(SIZE, 0, 0, 5, 5)], [0.5], labels), ["a", "b"])


@given(st.integers(0, 500))
def test_neighbouring_colours_differ(n: int) -> None:
    first, second = np.array(colour(n)), np.array(colour(n + 1))
    assert np.abs(first - second).max() > 80
    assert first.min() >= 0
    assert first.max() == 255
