"""Masks as run lengths, against loops in float64 and against torch and pycocotools.

Shapes: N masks, h x w logits, H x W pixels of the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils
from torch import Tensor

from alignmask import _core, ops
from alignmask.ops import _library
from tests.ops import cases, oracles, strategies
from tests.ops.compare import array

OP = "mask_rle"
Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


def counts_of(found: Found) -> list[list[int]]:
    counts, offsets = found[0].tolist(), found[1].tolist()
    return [counts[a:b] for a, b in itertools.pairwise(offsets)]


def decode(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def rounding(logits: Tensor, shape: cases.RleShape) -> float:
    """How far a resized logit may be from the exact one: positions are rounded relative to the
    axis's length, and so are weights and products."""
    eps = torch.finfo(torch.float64 if logits.dtype == torch.float64 else torch.float32).eps
    largest = float(logits.float().abs().max()) if logits.numel() else 0
    return 8 * eps * (1 + max(*shape.logits, *shape.valid)) * largest


def check_consistent(found: Found, masks_NHW: list[np.ndarray]) -> None:
    """That area and box are those of the counts' masks."""
    for mask_HW, area, box in zip(masks_NHW, found[2].tolist(), found[3].tolist(), strict=True):
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        assert area == mask_HW.sum()
        if area:
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        else:
            assert box == [0, 0, 0, 0]


def check_against_the_oracle(found: Found, logits: Tensor, shape: cases.RleShape) -> None:
    expected = oracles.mask_rle(array(logits), *shape.sizes)
    near, one_by_one = rounding(logits, shape), counts_of(found)
    assert len(one_by_one) == len(expected) == shape.N
    masks_NHW = [decode(counts, shape.size) for counts in one_by_one]
    check_consistent(found, masks_NHW)
    for n, (full, counts, area, box, probability) in enumerate(expected):
        unclear = np.abs(full) <= near
        assert not ((masks_NHW[n] != (full > 0)) & ~unclear).any()
        if not unclear.any():
            assert one_by_one[n] == counts
            assert (int(found[2][n]), found[3][n].tolist()) == (area, box)
        if not unclear.any() or abs(probability - 0.5) > 0.1:
            tolerance = 1e-4 if found[4].dtype == torch.float32 else 1e-9
            least = max(min(area, int(found[2][n])), 1)
            assert abs(float(found[4][n]) - probability) <= tolerance + unclear.sum() / least


@given(strategies.rle_shapes(), strategies.dtypes, strategies.seeds, st.booleans())
def test_equals_the_oracle(
    shape: cases.RleShape, dtype: torch.dtype, seed: int, smooth: bool
) -> None:
    logits = cases.mask_rle(shape, dtype, smooth, seed)
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            found = ops.mask_rle(logits, *shape.sizes)
        assert [t.dtype for t in found] == [
            torch.int32,
            *[torch.int64] * 3,
            torch.float64 if dtype == torch.float64 else torch.float32,
        ]
        check_against_the_oracle(found, logits, shape)


def composed(logits: Tensor, shape: cases.RleShape) -> Tensor:
    """The logits at the image's size, as the model's predictions were made without the op."""
    full = F.interpolate(logits[None], size=shape.padded, mode="bilinear", align_corners=False)
    full = full[..., : shape.valid[0], : shape.valid[1]]
    if shape.valid != shape.size:
        full = F.interpolate(full, size=shape.size, mode="bilinear", align_corners=False)
    return full[0]


@given(strategies.rle_shapes(), strategies.seeds, st.booleans())
def test_equals_interpolate_and_pycocotools(shape: cases.RleShape, seed: int, smooth: bool) -> None:
    """Byte for byte, but for pixels whose logit is within rounding of 0."""
    if shape.N == 0:
        return
    logits = cases.mask_rle(shape, torch.float32, smooth, seed)
    full = composed(logits, shape)
    expected = mask_utils.encode(np.asfortranarray((full > 0).numpy().transpose(1, 2, 0), np.uint8))
    inside = (full > 0).flatten(1)
    mean = (full.flatten(1).sigmoid() * inside).sum(1) / inside.sum(1).clamp(min=1)
    for implementation in ("reference", "kernel"):
        with cases.using(implementation, OP):
            found = ops.mask_rle(logits, *shape.sizes)
        for n, counts in enumerate(counts_of(found)):
            rle = mask_utils.frPyObjects({"size": list(shape.size), "counts": counts}, *shape.size)
            if rle == expected[n]:
                assert abs(float(found[4][n] - mean[n])) < 1e-5
                assert int(found[2][n]) == mask_utils.area(expected[n])
            else:
                other = decode(counts, shape.size) != (full[n] > 0).numpy()
                assert np.abs(full[n].numpy()[other]).max() <= rounding(logits, shape)


def test_by_hand(implementation: str) -> None:
    """Rows 1, 1/2, -1/2, -1: upsampled by two. The second mask is everything, the third nothing,
    and of the fourth the first pixel is set."""
    logits = torch.tensor([[[1.0], [-1.0]], [[3.0], [3.0]], [[-1.0], [0.0]], [[1.0], [-2.0]]])
    found = ops.mask_rle(logits, (4, 2))
    assert counts_of(found) == [[0, 2, 2, 2, 2], [0, 8], [8], [0, 2, 2, 2, 2]]
    assert found[2].tolist() == [4, 8, 0, 4]
    assert found[3].tolist() == [[0, 0, 2, 2], [0, 0, 2, 4], [0, 0, 0, 0], [0, 0, 2, 2]]
    sigmoid = [1 / (1 + math.exp(-x)) for x in (1.0, 0.5, 3.0, 0.25)]
    expected = [
        (sigmoid[0] + sigmoid[1]) / 2,
        sigmoid[2],
        0,
        (sigmoid[0] + sigmoid[3]) / 2,
    ]
    torch.testing.assert_close(found[4], torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_padding_is_cut_off_and_the_rest_resized(implementation: str) -> None:
    """4 x 4 logits stand for 8 x 8 pixels, of which 4 x 6 show an image of 2 x 3."""
    logits = torch.full((1, 4, 4), -9.0)
    logits[0, 2:] = 9  # the padding below the image
    logits[0, 0, 0] = 9
    found = ops.mask_rle(logits, (2, 3), (8, 8), (4, 6))
    full = composed(logits, cases.RleShape(1, (4, 4), (2, 3), (8, 8), (4, 6)))[0]
    assert (full > 0).tolist() == [[True, False, False], [False, False, False]]
    assert counts_of(found) == [[0, 1, 5]]


def test_nothing_to_resize(implementation: str) -> None:
    """Zero is background; columns touch each other at their ends."""
    logits = torch.tensor([[[0.0, 2, 0, 1], [5, -1, 3, 0], [1, 1, 4, -3]]])
    found = ops.mask_rle(logits, (3, 4))
    assert counts_of(found) == [[1, 3, 1, 1, 1, 3, 2]]
    assert found[3].tolist() == [[0, 0, 4, 3]]
    cut = ops.mask_rle(logits, (2, 3), (3, 4), (2, 3))
    assert counts_of(cut) == [[1, 2, 2, 1]]


def test_one_pixel(implementation: str) -> None:
    assert counts_of(ops.mask_rle(torch.tensor([[[1.0]], [[-1.0]]]), (1, 1))) == [[0, 1], [1]]
    logits = torch.tensor([[[1.0, 3.0], [-8.0, 1.0]], [[1.0, 3.0], [-3.0, 1.0]]])
    found = ops.mask_rle(logits, (1, 1))  # the mean of the four
    assert counts_of(found) == [[1], [0, 1]]
    huge = ops.mask_rle(torch.tensor([[[2.0]]]), (70, 300))
    assert counts_of(huge) == [[0, 21000]]
    assert huge[3].tolist() == [[0, 0, 300, 70]]


def test_no_masks(implementation: str) -> None:
    found = ops.mask_rle(torch.zeros(0, 3, 4), (6, 8))
    assert [list(t.shape) for t in found] == [[0], [1], [0], [0, 4], [0]]


def test_nan_is_background_and_infinity_foreground(implementation: str) -> None:
    logits = torch.full((1, 3, 3), -1.0)
    logits[0, 1, 1], logits[0, 0, 2] = math.inf, math.nan
    found = ops.mask_rle(logits, (3, 3))
    assert counts_of(found) == [[4, 1, 4]]
    assert found[4].tolist() == [1.0]
    logits = torch.full((2, 3, 3), math.nan)
    logits[1] = -math.inf
    assert counts_of(ops.mask_rle(logits, (7, 9))) == [[63], [63]]
    # Upsampled, NaN spreads to what is blended of it, and no further.
    logits = torch.ones(1, 2, 2)
    logits[0, 0, 0] = math.nan
    found = ops.mask_rle(logits, (4, 4))
    full = F.interpolate(logits[None], size=(4, 4), mode="bilinear")[0, 0]
    assert np.array_equal(decode(counts_of(found)[0], (4, 4)), (full > 0).numpy())
    assert 0 < int(found[2]) < 16


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strides_do_not_matter(implementation: str, dtype: torch.dtype) -> None:
    shape = cases.MASK_RLE["odd"]
    logits = cases.mask_rle(shape, dtype, smooth=True)
    expected = ops.mask_rle(logits, *shape.sizes)
    assert expected[2].max() > 100
    wide = torch.stack((logits, -logits), -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]
    for other in (logits.mT.contiguous().mT, wide, logits.flip(1).flip(1)):
        for a, b in zip(ops.mask_rle(other, *shape.sizes), expected, strict=True):
            assert torch.equal(a, b)
    one = ops.mask_rle(logits[1:2].expand(3, -1, -1), *shape.sizes)
    assert counts_of(one) == counts_of(expected)[1:2] * 3


def test_no_gradient(implementation: str) -> None:
    logits = cases.mask_rle(cases.MASK_RLE["tiny"]).requires_grad_()
    found = ops.mask_rle(logits, *cases.MASK_RLE["tiny"].sizes)
    assert not any(t.requires_grad for t in found)


# ---- sizes one below, at and one above what kernels count in


@pytest.mark.parametrize("height", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192])
@pytest.mark.parametrize("twice", [False, True])
def test_words_of_rows(implementation: str, height: int, twice: bool) -> None:
    """Bits are of 64 rows on the CPU, of 32 on the GPU."""
    valid = (height // 2 + 1, 9) if twice else (height, 5)
    shape = cases.RleShape(3, (max(height // 3, 1), 4), (height, 5), (valid[0] + 3, 12), valid)
    logits = cases.mask_rle(shape, torch.float64, seed=height)
    logits[0] = 1  # everything: runs across all columns
    logits[1, -1] = 20
    found = ops.mask_rle(logits, *shape.sizes)
    assert counts_of(found)[0] == [0, height * 5]
    check_against_the_oracle(found, logits, shape)


@pytest.mark.parametrize("w", [1, 15, 16, 17, 63, 64, 65, 130])
def test_words_of_logits(implementation: str, w: int) -> None:
    shape = cases.RleShape(9, (3, w), (7, 2 * w + 1), (7, 2 * w + 1), (7, 2 * w + 1))
    logits = cases.mask_rle(shape, torch.float64, seed=w)
    logits[0] = -1
    logits[0, 1, -1] = 5  # in the last column alone
    check_against_the_oracle(ops.mask_rle(logits, *shape.sizes), logits, shape)


@pytest.mark.parametrize("end", [0, 1, 30, 69])
def test_a_mask_in_a_corner(implementation: str, end: int) -> None:
    """Single logits above 0: what lies far from them is not computed, and not missed."""
    shape = cases.RleShape(4, (70, 70), (33, 41), (150, 160), (140, 133))
    logits = torch.full((4, 70, 70), -2.0, dtype=torch.float64)
    for n, (y, x) in enumerate([(end, 0), (0, end), (end, end), (69 - end, end)]):
        logits[n, y, x] = 200
    found = ops.mask_rle(logits, *shape.sizes)
    check_against_the_oracle(found, logits, shape)
    assert found[2].any() == (end < 69)


# ---- what is wrong

ERRORS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no tensor": (
        TypeError,
        "logits must be a torch.Tensor, got NoneType",
        lambda: ops.mask_rle(None, (1, 1)),  # type: ignore[arg-type]
    ),
    "booleans": (
        TypeError,
        "logits must be of dtype .*, got bool",
        lambda: ops.mask_rle(torch.ones(1, 2, 2) > 0, (1, 1)),
    ),
    "rank": (
        ValueError,
        r"logits must have the 3 dimensions Nhw, got \(2, 2\)",
        lambda: ops.mask_rle(torch.ones(2, 2), (1, 1)),
    ),
    "no logits": (
        ValueError,
        r"logits must be of 1 pixel or more a side, got \(0, 2\)",
        lambda: ops.mask_rle(torch.ones(1, 0, 2), (1, 1)),
    ),
    "no image": (
        ValueError,
        r"size must be of 1 pixel or more a side, got \(3, 0\)",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (3, 0), (1, 1)),
    ),
    "no pair": (
        TypeError,
        r"padded\[0\] must be a pair of ints \(h, w\), got \(3,\)",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (3, 3), (3,)),
    ),
    "outside": (
        ValueError,
        r"valid \(4, 5\) must lie within padded \(4, 4\)",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (3, 3), (4, 4), (4, 5)),
    ),
    "huge": (
        ValueError,
        r"size \(65536, 32768\) has 2\^31 pixels or more",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (65536, 32768), (4, 4)),
    ),
    "wide": (
        ValueError,
        r"padded \(4, 16777217\) has a side of more than 2\^24 pixels",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (4, 4), (4, 2**24 + 1)),
    ),
    "high": (
        ValueError,
        r"size \(2147483647, 1\) has a side of more than 2\^24 pixels",
        lambda: ops.mask_rle(torch.ones(1, 2, 2), (2**31 - 1, 1)),
    ),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(implementation: str, name: str) -> None:
    error, message, call = ERRORS[name]
    with pytest.raises(error, match=f"^{OP}: {message}"):
        call()


def raw_counts(ends: list[list[int]], room: int) -> Tensor:
    """What mask_rle_counts writes for two masks of 3 x 2 pixels, into memory of -1."""
    logits = torch.tensor([[[1.0, -1], [-1, 1], [1, -1]], [[-1, 1], [-1, 1], [-1, 1]]])
    counts = torch.full((room + 2,), -1, dtype=torch.int32)
    sizes = (3, 2, 3, 2, 3, 2)
    _library.core.mask_rle_counts_forward(
        counts[1:-1], torch.tensor(ends), logits, *sizes, 1, _library.workspace(logits), 0
    )
    return counts


def test_counts_go_where_ends_say(implementation: str) -> None:
    if implementation != "reference":
        found = raw_counts([[3, 7], [7, 9]], 9)
        assert found.tolist() == [-1, 0, 1, 1, 1, 1, 1, 1, 3, 3, -1]


@pytest.mark.parametrize("ends", [[[3, 7], [6, 9]], [[3, 7], [8, 30]], [[-1, 7], [7, 9]]])
def test_wrong_ends(implementation: str, ends: list[list[int]]) -> None:
    """An error; on a GPU, where nothing waits to look at them, nothing is written outside."""
    if implementation == "reference":
        return
    if implementation.startswith("cuda"):
        found = raw_counts(ends, 9)
        assert (found[0], found[-1]) == (-1, -1)
    else:
        with pytest.raises(ValueError, match=rf"^{OP}: ends\[.*\] = .* must be between"):
            raw_counts(ends, 9)


def test_ends_of_other_logits_write_nothing_elsewhere(implementation: str) -> None:
    if implementation != "reference":
        for ends in ([[1, 2], [2, 2]], [[9, 18], [20, 30]]):
            found = raw_counts(ends, ends[1][1])
            assert (found[0], found[-1]) == (-1, -1)


@pytest.mark.parametrize("name", ["runs", "area", "box", "probability"])
def test_outputs_are_needed(name: str) -> None:
    outputs = {
        "runs": torch.zeros(1, 2, dtype=torch.int32),
        "area": torch.zeros(1, dtype=torch.int64),
        "box": torch.zeros(1, 4, dtype=torch.int64),
        "probability": torch.zeros(1),
    }
    sizes = (2, 2, 2, 2, 2, 2)
    _core.mask_rle_forward(*outputs.values(), torch.ones(1, 2, 2), *sizes)
    wrong = outputs | {name: outputs[name][:0]}
    with pytest.raises(ValueError, match=f"^{OP}: {name} .* has N = 0"):
        _core.mask_rle_forward(*wrong.values(), torch.ones(1, 2, 2), *sizes)
    wrong[name] = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match=f"^{OP}: {name}"):
        _core.mask_rle_forward(*wrong.values(), torch.ones(1, 2, 2), *sizes)


# ---- torch


def test_the_graph_breaks_where_the_sizes_depend_on_logits() -> None:
    shape = cases.MASK_RLE["odd"]
    logits = cases.mask_rle(shape)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: ops.mask_rle(x * 2, *shape.sizes), backend="aot_eager")
    for a, b in zip(compiled(logits), ops.mask_rle(logits * 2, *shape.sizes), strict=True):
        assert torch.equal(a, b)


def test_opcheck_of_the_counts() -> None:
    shape = cases.MASK_RLE["odd"]
    logits, sizes = cases.mask_rle(shape), [side for pair in shape.sizes for side in pair]
    runs = torch.ops.alignmask.mask_rle(logits, sizes)[0]
    ends = runs.flatten().cumsum(0).view(runs.shape)
    arguments = (logits, sizes, ends, int(ends[-1, -1]))
    torch.library.opcheck(torch.ops.alignmask.mask_rle_counts.default, arguments)
