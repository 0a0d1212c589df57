"""Segmentations: our checks against a slow decoder written from the format, our masks against
pycocotools' COCO."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignmask.data.masks import (
    check_coverage,
    decode_rles,
    encode_segmentation,
    measure_counts,
    parse_segmentation,
)
from tests.data.coco_files import counts, rle

masks = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def slow_counts(text: bytes) -> list[int] | None:
    """The counts of a compressed RLE, read digit by digit; None if it is damaged."""
    result: list[int] = []
    position = 0
    while position < len(text):
        value, digit, more = 0, 0, True
        while more:
            if position == len(text) or not 48 <= text[position] < 112:
                return None
            code = text[position] - 48
            value |= (code & 31) << 5 * digit
            more = bool(code & 32)
            position, digit = position + 1, digit + 1
            if not more and code & 16:
                value |= -1 << 5 * digit
        if digit > 7:
            return None
        result.append(value + (result[-2] if len(result) > 2 else 0))
    return None if not result or min(result) < 0 else result


@given(st.lists(masks, max_size=6))
def test_measure_counts_of_good_rles(arrays: list[np.ndarray]):
    covered, area = measure_counts([rle(mask)["counts"].encode() for mask in arrays])
    assert covered.tolist() == [mask.size for mask in arrays]
    assert area.tolist() == [mask.sum() for mask in arrays]


def test_measure_counts_of_long_runs():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[:, 700:1900] = True
    mask[5:7, 3] = True
    covered, area = measure_counts([rle(mask)["counts"].encode()] * 2)
    assert covered.tolist() == [mask.size] * 2
    assert area.tolist() == [mask.sum()] * 2


good_texts = masks.map(lambda mask: rle(mask)["counts"].encode())
damaged_texts = st.tuples(good_texts, st.integers(0, 30), st.binary(max_size=2)).map(
    lambda parts: (parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]) or b"0"
)
garbage = st.binary(min_size=1, max_size=20) | st.lists(
    st.integers(44, 115), min_size=1, max_size=20
).map(bytes)


@given(st.lists(good_texts | damaged_texts | garbage, min_size=1, max_size=6))
def test_measure_counts_of_any_text_agrees_with_the_slow_decoder(texts: list[bytes]):
    covered, area = measure_counts(texts)
    for text, cover, pixels in zip(texts, covered.tolist(), area.tolist(), strict=True):
        expected = slow_counts(text)
        assert cover == (-1 if expected is None else sum(expected))
        assert pixels == (0 if expected is None else sum(expected[1::2]))


def test_an_rle_that_ends_early_is_refused():
    """pycocotools would leave the rest of this mask uninitialised."""
    text = rle(np.eye(6, dtype=bool))["counts"].encode()[:-2]
    covered, _ = measure_counts([text])
    with pytest.raises(ValueError, match="6 x 6 = 36"):
        check_coverage(text, covered[0], (6, 6))
    with pytest.raises(ValueError, match="damaged"):
        check_coverage(b"~", measure_counts([b"~"])[0][0], (6, 6))


@given(st.lists(masks, min_size=1, max_size=4))
def test_both_rle_forms_round_trip(arrays: list[np.ndarray]):
    for mask in arrays:
        size = mask.shape
        for counts_json in (rle(mask)["counts"], counts(mask)):
            segmentation, short = parse_segmentation(
                {"size": list(size), "counts": counts_json}, size
            )
            assert short == 0
            decoded = decode_rles([encode_segmentation(segmentation, size)], size)
            assert decoded.dtype == bool
            assert decoded.flags.c_contiguous
            assert np.array_equal(decoded[0], mask)


def test_polygons_fill_the_pixels_inside():
    polygons = [[2, 1, 7, 1, 7, 5, 2, 5], [10, 10, 12.0, 10, 12, 13, 10, 13]]
    segmentation, short = parse_segmentation([*polygons, [1, 1, 2, 2], []], (15, 20))
    assert short == 2
    mask = decode_rles([encode_segmentation(segmentation, (15, 20))], (15, 20))[0]
    expected = np.zeros((15, 20), dtype=bool)
    expected[1:5, 2:7] = True
    expected[10:13, 10:12] = True
    assert np.array_equal(mask, expected)


def test_no_instances_make_an_empty_stack():
    assert decode_rles([], (4, 5)).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "expected polygons or an RLE"),
        ("abc", "expected polygons or an RLE"),
        ({"counts": "abc"}, "expected polygons or an RLE"),
        ({"size": [4, 5]}, "expected polygons or an RLE"),
        (
            {"size": [5, 4], "counts": "d0"},
            r"RLE size \[5, 4\] differs from the image's \[height, width\] \[4, 5\]",
        ),
        ({"size": [4, 5], "counts": ""}, "expected RLE counts"),
        ({"size": [4, 5], "counts": [10, -1, 11]}, "non-negative"),
        ({"size": [4, 5], "counts": [10, 2.5]}, "non-negative"),
        ({"size": [4, 5], "counts": [10, 9]}, "RLE covers 19 pixels, the image has 4 x 5 = 20"),
        ([1, 2, 3, 4, 5, 6], "list of polygons, each"),
        ([[1, 2, 3, 4, 5, 6, 7]], "lists of x, y"),
        ([{"size": [4, 5]}], "list of polygons, each"),
    ],
)
def test_structural_faults(segmentation, reason):
    with pytest.raises(ValueError, match=reason):
        parse_segmentation(segmentation, (4, 5))


@pytest.mark.parametrize("coordinate", [float("nan"), float("inf"), 1e9, "a", None, [1]])
def test_polygons_must_be_finite_numbers(coordinate):
    segmentation, _ = parse_segmentation([[0, 0, 3, 0, coordinate, 3]], (4, 5))
    with pytest.raises(ValueError, match="polygon"):
        encode_segmentation(segmentation, (4, 5))
