"""Points for mask losses against loops in float64, and against PointRend's own composition.

Shapes: R rows, H x W logits, G masks, K points, M candidates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from alignmask import ops
from tests.loss.pointrend import uncertain_points
from tests.ops import cases, oracle_mask_points, oracles, strategies
from tests.ops.compare import NONDETERMINISM, array, assert_near, assert_same

OP = "mask_points"
Arguments = tuple[Tensor, Tensor, Tensor, int, int]


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


def case(name: str = "odd", **options: Any) -> Arguments:
    return cases.mask_points(cases.MASK_POINTS[name], **options)


def indices(points_RK2: Tensor, candidates: oracles.Array) -> oracles.Array:
    """Numbers of the candidates that the points are, exactly."""
    found = np.full(points_RK2.shape[:2], -1)
    for r, row in enumerate(array(points_RK2)):
        number = {tuple(point): i for i, point in reversed(list(enumerate(candidates[r])))}
        found[r] = [number[tuple(point)] for point in row]
    return found


def check(arguments: Arguments, oversample: float = 3.0, importance: float = 0.75) -> None:
    """Compare points, samples and the gradient with the oracle."""
    logits, masks, index, K, seed = arguments
    logits = logits.detach().requires_grad_()
    sampled, targets, points = ops.mask_points(
        logits, masks, index, K, seed, oversample, importance
    )
    R, H, W = logits.shape
    arithmetic = torch.float64 if logits.dtype == torch.float64 else torch.float32
    assert (sampled.dtype, targets.dtype, points.dtype) == (logits.dtype, arithmetic, arithmetic)
    assert (sampled.shape, targets.shape, points.shape) == ((R, K), (R, K), (R, K, 2))
    assert not targets.requires_grad
    assert not points.requires_grad

    expected = oracle_mask_points.choose(array(logits), K, seed, oversample, importance)
    kept, M = expected.chosen.shape[1], expected.distances.shape[1]
    chosen = indices(points, expected.candidates)
    assert np.array_equal(chosen[:, kept:], np.arange(M, M + K - kept)[None].repeat(R, 0))
    assert (np.diff(chosen[:, :kept]) > 0).all()
    assert (chosen[:, :kept] < M).all()
    # No other candidate is nearer to 0, but for what rounding makes of a sample and its place.
    largest = float(logits.detach().abs().amax()) if logits.numel() else 0.0
    size = 1 + max(H, W, *masks.shape[1:])
    bound = np.take_along_axis(expected.distances, expected.chosen, 1).max(1, initial=0)
    own = np.take_along_axis(expected.distances, chosen[:, :kept], 1).max(1, initial=0)
    assert (own <= bound + 8 * torch.finfo(arithmetic).eps * size * largest).all()

    grad = torch.randn(R, K, generator=torch.Generator().manual_seed(1)).to(sampled.dtype)
    (grad_logits,) = torch.autograd.grad(sampled, logits, grad)
    rows, places = np.arange(R), array(points)
    values, gradient = oracle_mask_points.sample(array(logits), rows, places, array(grad))
    assert_near(sampled, values, size * largest, "logits")
    hits, _ = oracle_mask_points.sample(array(masks) != 0, array(index), places, array(grad) * 0)
    assert_near(targets, hits, size, "targets")
    sums = float(grad.abs().amax()) * math.sqrt(K) if grad.numel() else 0.0
    assert_near(grad_logits, gradient, size * sums, "gradient of logits")


@given(
    strategies.points_shapes(),
    strategies.dtypes,
    strategies.seeds,
    st.sampled_from(((3.0, 0.75), (1.0, 1.0), (0.0, 0.0), (2.5, 0.0), (1.3, 0.9), (0.5, 0.5))),
)
def test_equals_the_oracle(
    shape: cases.PointsShape, dtype: torch.dtype, seed: int, shares: tuple[float, float]
) -> None:
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            check(cases.mask_points(shape, dtype, seed), *shares)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_oracle_has_the_published_numbers(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    """Of Random123's `kat_vectors`."""
    found = oracle_mask_points.philox(np.array(counter, np.uint64), np.array(key, np.uint64))
    assert found.tolist() == words


def test_the_first_points_are_published_numbers(implementation: str) -> None:
    """Seed 0, row 0: the first of Random123's `kat_vectors` is the counter 0 with the key 0."""
    logits, masks, index, _, _ = case(dtype=torch.float64)
    _, _, points = ops.mask_points(logits, masks, index, 2, 0, 0.0, 0.0)
    words = [[0x6627E8D5, 0xE169C58D], [0xBC57AC4C, 0x9B00DBD8]]
    assert points[0].tolist() == [[(word >> 8) / 2**24 for word in pair] for pair in words]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", ["tiny", "odd"])
@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 1234567890123])
def test_every_implementation_has_the_same_bits(
    implementation: str, name: str, dtype: torch.dtype, seed: int
) -> None:
    arguments = (*case(name, dtype=dtype)[:4], seed)
    with ops.use_reference():
        expected = ops.mask_points(*arguments)
    for a, b in zip(ops.mask_points(*arguments), expected, strict=True):
        assert torch.equal(a, b)


def test_by_hand(implementation: str) -> None:
    """Left pixel 3, right pixel -5, the mask is the right one: between their centres the logit is 3
    - 16 (x - 1/4), the target 2 (x - 1/4)."""
    logits = torch.tensor([[[3.0, -5.0]]], dtype=torch.float64).expand(1, 2, 2)
    masks = torch.tensor([[[0, 9]]], dtype=torch.uint8).expand(1, 2, 2)
    found, targets, points = ops.mask_points(logits, masks, torch.tensor([0]), 4000, 1, 1.0, 1.0)
    x, y = points[0].unbind(1)
    inner = (x > 0.25) & (x < 0.75) & (y > 0.25) & (y < 0.75)
    assert inner.sum() > 500
    torch.testing.assert_close(found[0, inner], 3 - 16 * (x[inner] - 0.25))
    torch.testing.assert_close(targets[0, inner], 2 * (x[inner] - 0.25))
    # Beyond the centres of the outermost pixels, all fades to 0 within half a pixel.
    corner = (x > 0.75) & (y < 0.25)
    assert corner.sum() > 100
    share = (1 - 2 * (x[corner] - 0.75)) * (1 - 2 * (0.25 - y[corner]))
    torch.testing.assert_close(found[0, corner], -5 * share)
    torch.testing.assert_close(targets[0, corner], share)


# ---- which candidates are chosen


@pytest.mark.parametrize("values", [(0, 1), (-1, 0, 1, 2), (3, 3)])
def test_the_first_of_equals_are_chosen(implementation: str, values: tuple[int, ...]) -> None:
    """Whole numbers on a map whose sides are powers of 2: float64 holds every sample exactly, so
    the oracle's choice is the only one."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.tensor(values, dtype=torch.float64)
    logits = numbers[torch.randint(len(values), (4, 8, 16), generator=generator)]
    masks, index = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(4, dtype=torch.long)
    for points, oversample, importance in ((300, 3.0, 0.75), (300, 1.0, 1.0), (9, 40.0, 0.5)):
        _, _, found = ops.mask_points(logits, masks, index, points, 5, oversample, importance)
        expected = oracle_mask_points.choose(logits.numpy(), points, 5, oversample, importance)
        assert np.array_equal(
            indices(found, expected.candidates)[:, : expected.chosen.shape[1]], expected.chosen
        )


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.7, -1000.0])
def test_of_a_constant_map_the_first_candidates_are_taken(
    implementation: str, value: float, dtype: torch.dtype
) -> None:
    """Besides those on the border, where samples fade to 0: what is blended from equals is
    equal."""
    logits = torch.full((2, 6, 5), value, dtype=dtype)
    masks, index = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
    found, _, points = ops.mask_points(logits, masks, index, 400, 9)
    expected = oracle_mask_points.choose(array(logits), 400, 9)
    chosen = indices(points, expected.candidates)[:, :300]
    if value == 0:
        assert (chosen == np.arange(300)).all()
        return
    for r in range(2):
        away = expected.candidates[r, :1200] * (5, 6)
        inner = ((away > 0.51) & (away < np.array([5, 6]) - 0.51)).all(1)
        mine = chosen[r][inner[chosen[r]]]
        assert np.array_equal(mine, np.flatnonzero(inner)[: len(mine)])
        assert (~inner).sum() + len(mine) >= 300
        assert (found[r, :300][torch.from_numpy(inner[chosen[r]])] == logits[0, 0, 0]).all()


def test_nan_is_farther_than_infinity(implementation: str) -> None:
    """The left half of the map is finite, then comes an infinite column, then NaN."""
    logits = torch.ones(1, 8, 8, dtype=torch.float64)
    logits[:, :, 4] = math.inf
    logits[:, :, 5:] = math.nan
    masks, index = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    found, targets, points = ops.mask_points(logits, masks, index, 200, 3, 2.0, 1.0)
    finite = found.isfinite()
    assert targets.isfinite().all()
    assert torch.equal(finite, points[..., 0] * 8 - 0.5 < 3)
    expected = oracle_mask_points.choose(np.ones((1, 8, 8)), 200, 3, 2.0, 1.0)
    all_finite = (expected.candidates[0, :, 0] * 8 - 0.5 < 3).sum()
    assert finite.sum() == min(all_finite, 200)


def test_chosen_and_fresh_points_are_distributed_as_pointrends() -> None:
    """Kolmogorov and Smirnov find no difference, neither of uncertainties nor of places."""
    logits, masks, index, _, _ = cases.mask_points(cases.PointsShape(8, (32, 24), (5, 5), 3, 1))
    torch.manual_seed(0)
    theirs_RK2 = uncertain_points(logits, 2000, 3.0, 0.75)
    found, _, ours_RK2 = ops.mask_points(logits, masks, index, 2000, 11)
    grid = 2 * theirs_RK2[:, :, None] - 1
    values = torch.nn.functional.grid_sample(logits[:, None], grid, align_corners=False)[:, 0, :, 0]
    for r, part in itertools.product(range(8), (slice(0, 1500), slice(1500, 2000))):
        for ours, theirs in (
            (found[r, part].abs(), values[r, part].abs()),
            (ours_RK2[r, part, 0], theirs_RK2[r, part, 0]),
            (ours_RK2[r, part, 1], theirs_RK2[r, part, 1]),
        ):
            assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-4
    fresh = ours_RK2[:, 1500:].flatten().numpy()
    assert stats.kstest(fresh, "uniform").pvalue > 1e-3
    # Points of the other share are not uniform: the test above can tell.
    assert stats.kstest(ours_RK2[0, :1500, 0].numpy(), "uniform").pvalue < 1e-4


def test_candidates_of_rows_and_seeds_have_nothing_in_common(implementation: str) -> None:
    logits, masks, index, _, _ = case()
    drawn = {
        seed: ops.mask_points(logits, masks, index, 50, seed, 1.0, 1.0)[2]
        for seed in (0, 1, 2**32, -1)
    }
    points = torch.cat([row for rows in drawn.values() for row in rows])
    assert len(points.unique(dim=0)) == len(drawn) * len(logits) * 50
    assert (points >= 0).all()
    assert (points < 1).all()


def test_a_row_hangs_on_its_number_and_its_own_logits_alone(implementation: str) -> None:
    logits, masks, index, K, seed = case()
    expected = ops.mask_points(logits, masks, index, K, seed)
    others = -2 * logits
    others[1] = logits[1]
    for length in (2, len(logits)):
        found = ops.mask_points(others[:length], masks, index[:length], K, seed)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a[1], b[1])


# ---- sizes, layouts, gradients


@pytest.mark.parametrize("importance", [0.75, 0.0, 1.0])
def test_gradcheck(implementation: str, importance: float) -> None:
    logits, masks, index, K, seed = case(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ops.mask_points(x, masks, index, K, seed, 3.0, importance)[0],
        logits.requires_grad_(),
        fast_mode=True,
        nondet_tol=0.0 if cases.repeats(implementation) else NONDETERMINISM,
    )


def test_nothing_to_do(implementation: str) -> None:
    logits, masks, index, K, seed = case()
    for x, m, i, k in (
        (logits[:0], masks, index[:0], K),
        (logits[:0], masks[:0], index[:0], K),
        (logits, masks, index, 0),
        (logits[:, :0], masks, index, K),
        (logits, masks[:, :, :0], index, K),
    ):
        leaf = x.clone().requires_grad_()
        found, targets, points = ops.mask_points(leaf, m, i, k, seed)
        assert found.shape == targets.shape == points.shape[:2] == (len(x), k)
        if 0 in x.shape[1:]:
            assert not found.any()
        if 0 in m.shape[1:]:
            assert not targets.any()
        (grad,) = torch.autograd.grad(found.sum(), leaf)
        assert grad.shape == x.shape
        assert bool(grad.any()) == (grad.numel() > 0 and k > 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)], ids=str)
def test_maps_of_a_pixel(implementation: str, size: tuple[int, int]) -> None:
    for dtype in cases.DTYPES:
        check(cases.mask_points(cases.PointsShape(3, size, (1, 1), 2, 33), dtype))


@pytest.mark.parametrize("K", [1, 7, 8, 9, 15, 16, 17, 341, 342, 682, 683, 1023, 1024, 1025])
def test_registers_and_blocks_of_points(implementation: str, K: int) -> None:
    """On the CPU, 4, 8 or 16 points are a register's; on the GPU, 1024 candidates, 512 fresh points
    or 256 gradients are a block's. Of these K, three times as many, and numbers between."""
    for dtype, shares in ((torch.float64, (3.0, 0.75)), (torch.float32, (1.0, 0.5))):
        check(cases.mask_points(cases.PointsShape(2, (5, 6), (9, 7), 2, K), dtype), *shares)


@pytest.mark.parametrize("size", [(5, 51), (16, 16), (1, 257), (20, 33)], ids=str)
def test_tiles_of_pixels(implementation: str, size: tuple[int, int]) -> None:
    """255, 256, 257 and more pixels: what blocks own that add up gradients in order."""
    for dtype in (torch.float64, torch.float16):
        check(cases.mask_points(cases.PointsShape(2, size, (6, 8), 4, 300), dtype))


@pytest.mark.parametrize("implementation", cases.implementations(OP, emulated=False), indirect=True)
def test_as_many_points_as_the_model_has(implementation: str) -> None:
    for dtype in (torch.float64, torch.float32):
        check(cases.mask_points(cases.PointsShape(2, (64, 48), (256, 192), 2, 12544), dtype))


def test_more_rows_than_the_plain_form_takes_at_once(implementation: str) -> None:
    """Row 128 is not a second row 0."""
    check(cases.mask_points(cases.PointsShape(131, (3, 4), (5, 5), 3, 6)))


def test_strides_do_not_matter(implementation: str) -> None:
    logits, masks, index, K, seed = case()
    expected = ops.mask_points(logits, masks, index, K, seed)
    apart = torch.stack([logits, logits * math.nan], -1)[..., 0]
    variants = (
        (logits.mT.contiguous().mT, masks.mT.contiguous().mT, index.repeat_interleave(2)[::2]),
        (logits.flip(2).contiguous().flip(2), masks.permute(2, 1, 0).contiguous().permute(2, 1, 0), index),
        (apart, masks, index),
    )  # fmt: skip
    for tensors in variants:
        for a, b in zip(ops.mask_points(*tensors, K, seed), expected, strict=True):
            assert torch.equal(a, b)
    one = logits[:1].expand_as(logits)  # stride 0
    for a, b in zip(
        ops.mask_points(one, masks, index, K, seed),
        ops.mask_points(one.contiguous(), masks, index, K, seed),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_masks_are_bool_or_bytes_and_indices_of_32_or_64_bits(implementation: str) -> None:
    logits, masks, index, K, seed = case()
    expected = ops.mask_points(logits, masks, index, K, seed)
    for m, i in itertools.product((masks.byte(), masks.byte() * 255), (index.int(), index)):
        for a, b in zip(ops.mask_points(logits, m, i, K, seed), expected, strict=True):
            assert torch.equal(a, b)


ERRORS: dict[str, tuple[type[Exception], str, int, Callable[[Any], Any]]] = {
    "no tensor": (TypeError, "masks must be a torch.Tensor, got int", 1, lambda _: 1),
    "integers": (TypeError, "logits must be of dtype .*, got int64", 0, lambda a: a.long()),
    "rank": (
        ValueError,
        r"logits must have the 3 dimensions RHW, got \(5, 42\)",
        0,
        lambda a: a.flatten(1),
    ),
    "float masks": (
        TypeError,
        "masks must be of dtype bool, uint8, got float32",
        1,
        lambda a: a.float(),
    ),
    "rows": (
        ValueError,
        r"index \(R\) has R = 4 in \(4,\), but logits has R = 5",
        2,
        lambda a: a[1:],
    ),
    "points": (ValueError, "points must be at least 0, got -1", 3, lambda _: -1),
    "seed": (ValueError, "seed must fit in 64 bits, got 9223372036854775808", 4, lambda _: 2**63),
    "oversample": (
        ValueError,
        "oversample must be finite and at least importance = 0.75, got 0.5",
        5,
        lambda _: 0.5,
    ),
    "oversample nan": (ValueError, "oversample must be finite .*, got nan", 5, lambda _: math.nan),
    "importance": (ValueError, r"importance must be in \[0, 1\], got 1.5", 6, lambda _: 1.5),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(implementation: str, name: str) -> None:
    error, message, position, change = ERRORS[name]
    arguments: list[Any] = [*case(), 3.0, 0.75]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=f"^{OP}: {message}"):
        ops.mask_points(*arguments)


@pytest.mark.parametrize("wrong", [3, -1])
def test_an_index_out_of_range(implementation: str, wrong: int) -> None:
    """An error; on a GPU, where nothing waits to look at it, a row without a mask."""
    logits, masks, index, K, seed = case()
    changed = index.clone()
    changed[1] = wrong
    if cases.looks_at_indices(implementation):
        with pytest.raises(ValueError, match=rf"^{OP}: index\[1\] = {wrong} is outside \[0, 2\]"):
            ops.mask_points(logits, masks, changed, K, seed)
        return
    found = ops.mask_points(logits, masks, changed, K, seed)
    expected = [t.clone() for t in ops.mask_points(logits, masks, index, K, seed)]
    expected[1][1] = 0
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_gradients_repeat(implementation: str) -> None:
    logits, masks, index, K, seed = case(dtype=torch.float32)
    results = []
    for _ in range(2):
        leaf = logits.clone().requires_grad_()
        found, _, _ = ops.mask_points(leaf, masks, index, K, seed)
        results.append(torch.autograd.grad(found.square().sum(), leaf)[0])
    assert_same(results[0], results[1], cases.repeats(implementation))
