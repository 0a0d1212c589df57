"""Run-length encodings against an independent decoder; no input makes the tools underneath hang or
read astray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from alignmask import ops
from alignmask.data import rle


def decode(counts: str, size: tuple[int, int]) -> np.ndarray | None:
    """COCO's compressed counts as bool [H, W], one character at a time; None if they are damaged or
    of another size."""
    numbers: list[int] = []
    place = value = 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 31) << place
        place += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << place
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            place = value = 0
    if place or min(numbers, default=0) < 0 or sum(numbers) != size[0] * size[1]:
        return None
    runs = [np.full(number, k % 2 == 1) for k, number in enumerate(numbers)]
    return np.concatenate(runs).reshape(size[::-1]).T if runs else None


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    n, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return torch.from_numpy(rng.random((n, height, width)) < share)


@given(masks())
def test_encoding_is_decoded_by_both_decoders(masks_NHW: torch.Tensor) -> None:
    size = tuple(masks_NHW.shape[1:])
    encoded = rle.encode(masks_NHW)
    assert len(encoded) == len(masks_NHW)
    for entry, mask_HW in zip(encoded, masks_NHW.numpy(), strict=True):
        assert entry["size"] == list(size)
        np.testing.assert_array_equal(decode(entry["counts"], size), mask_HW)
        np.testing.assert_array_equal(mask_utils.decode(entry), mask_HW)
        assert rle.from_coco(entry, size) == {
            "size": list(size),
            "counts": entry["counts"].encode(),
        }


@given(masks())
def test_runs_compress_to_what_encoding_gives(masks_NHW: torch.Tensor) -> None:
    size = (masks_NHW.shape[1], masks_NHW.shape[2])
    counts, offsets, *_ = ops.mask_rle(masks_NHW.float(), size)
    assert rle.from_runs(counts, offsets, size) == rle.encode(masks_NHW)


@given(masks())
def test_strides_do_not_matter(masks_NHW: torch.Tensor) -> None:
    transposed = masks_NHW.transpose(1, 2)
    assert rle.encode(transposed) == rle.encode(transposed.contiguous())
    assert rle.encode(masks_NHW[:, ::2, 1:]) == rle.encode(masks_NHW[:, ::2, 1:].contiguous())


@pytest.mark.parametrize("masks_NHW", [torch.zeros(2, 3, 4), torch.zeros(3, 4, dtype=torch.bool)])
def test_anything_but_bool_masks_is_refused(masks_NHW: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"encode: masks must be bool \[N, H, W\]"):
        rle.encode(masks_NHW)


def accepted(counts: str, size: tuple[int, int]) -> np.ndarray | None:
    try:
        found = rle.from_coco({"size": list(size), "counts": counts}, size)
    except ValueError:
        return None
    return mask_utils.decode(found).astype(bool)


CHARACTERS = "".join(map(chr, range(48, 112)))


@given(
    st.one_of(st.text(CHARACTERS, max_size=12), st.text(max_size=6)),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_random_counts_are_refused_or_right(counts: str, height: int, width: int) -> None:
    found, expected = accepted(counts, (height, width)), decode(counts, (height, width))
    if expected is None or found is None:
        assert found is None
        assert expected is None
    else:
        np.testing.assert_array_equal(found, expected)


@given(masks().filter(len), st.data())
def test_damaged_counts_are_refused_or_right(masks_NHW: torch.Tensor, data: st.DataObject) -> None:
    """A character changed, lost or added: rarely still a mask of the same size."""
    size = tuple(masks_NHW.shape[1:])
    counts = rle.encode(masks_NHW[:1])[0]["counts"]
    place = data.draw(st.integers(0, len(counts) - 1))
    rest = data.draw(st.sampled_from([counts[place:], counts[place + 1 :]]))
    damaged = counts[:place] + data.draw(st.text(CHARACTERS, max_size=1)) + rest
    found, expected = accepted(damaged, size), decode(damaged, size)
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_array_equal(found, expected)


def test_valid_counts_in_an_unusual_form_are_read() -> None:
    """Runs of length 0 in between: other encoders write them."""
    size = (2, 3)
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    unusual = {"size": [2, 3], "counts": [1, 1, 0, 1, 3, 0]}
    masks = [mask_utils.decode(rle.from_coco(form, size)) for form in (plain, unusual)]
    np.testing.assert_array_equal(masks[0], masks[1])
    text = mask_utils.frPyObjects(unusual, *size)["counts"].decode()
    np.testing.assert_array_equal(accepted(text, size), masks[0].astype(bool))


@pytest.mark.parametrize("segmentation", [[], [[1, 2, 3, 4]], [[]]])
def test_no_polygon(segmentation: Any) -> None:
    assert rle.from_coco(segmentation, (5, 5)) is None


def test_polygons_make_one_mask() -> None:
    left, right = [0, 0, 3, 0, 3, 4, 0, 4], [6, 0, 9, 0, 9, 4, 6, 4]
    union = mask_utils.decode(rle.from_coco([left, [1, 1], right], (5, 10)))
    parts = [mask_utils.decode(rle.from_coco([polygon], (5, 10))) for polygon in (left, right)]
    np.testing.assert_array_equal(union, parts[0] | parts[1])
    assert union.sum() == 24
