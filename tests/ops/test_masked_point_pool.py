"""Masked point pooling against loops in float64.

Shapes: B images, C channels, H x W, G instances, T point sets, K points in a set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignmask import ops
from tests.ops import cases, oracles, strategies
from tests.ops.compare import NONDETERMINISM, array, assert_near, assert_same

OP = "masked_point_pool"
Normalize = Literal["mask", "points"]
NORMALIZE: tuple[Normalize, ...] = ("mask", "points")


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


def case(name: str = "odd", **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cases.masked_point_pool(cases.MASKED_POINT_POOL[name], **options)


def check(arguments: tuple[Tensor, Tensor, Tensor, Tensor], normalize: Normalize) -> None:
    """Compare pooled, weight and the gradient with the oracle."""
    features, masks, owner, points = arguments
    features = features.detach().requires_grad_()
    pooled, weight = ops.masked_point_pool(features, masks, owner, points, normalize)
    assert not weight.requires_grad
    assert pooled.dtype == features.dtype
    assert weight.dtype == (torch.float64 if features.dtype == torch.float64 else torch.float32)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled.dtype)
    (grad_features,) = torch.autograd.grad(pooled, features, grad)
    expected = oracles.masked_point_pool(
        array(features), array(masks), array(owner), array(points), normalize, array(grad)
    )
    # A position is rounded relative to the map's size; a mean over a tiny mask weight magnifies
    # that weight's rounding.
    size, K = 1 + max(*features.shape[2:], *masks.shape[1:]), max(points.shape[2], 1)
    assert_near(weight, expected[1], size * K, "weight")
    hit = expected[1][expected[1] > 0]
    least = min(float(hit.min(initial=1)), 1) if normalize == "mask" else 1
    v = float(features.detach().abs().amax()) if features.numel() else 0
    g = float(grad.abs().amax()) if grad.numel() else 0
    assert_near(pooled, expected[0], size * v / least, "pooled")
    assert_near(
        grad_features, expected[2], size * g / least * math.sqrt(len(masks)), "gradient of features"
    )
    assert not pooled[weight == 0].any()


@given(
    strategies.pool_shapes(),
    strategies.layouts,
    strategies.dtype_pairs(),
    strategies.seeds,
    st.sampled_from(NORMALIZE),
)
def test_equals_the_oracle(
    shape: cases.PoolShape,
    layout: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
    normalize: Normalize,
) -> None:
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            check(cases.masked_point_pool(shape, layout, *dtypes, seed=seed), normalize)


def test_by_hand(implementation: str) -> None:
    """Left pixel 3, right pixel 5; the mask is the right one. At x = 1/2 half the mask is hit, and
    the feature is 4."""
    features, masks = torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[0, 1]]], dtype=torch.uint8)
    points = torch.tensor([[[[0.75, 0.5], [0.5, 0.5], [0.25, 0.5], [0.75, 2.0]]]])
    owner = torch.tensor([0])
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    assert weight.tolist() == [[1.5]]
    torch.testing.assert_close(pooled, torch.tensor([[[(5 + 0.5 * 4) / 1.5]]]))
    pooled, _ = ops.masked_point_pool(features, masks, owner, points, "points")
    torch.testing.assert_close(pooled, torch.tensor([[[(5 + 0.5 * 4) / 4]]]))


def test_one_pixel_outside_is_outside(implementation: str) -> None:
    """Exactly at the centre of the pixel that would follow the last, or precede the first, of full
    masks and features."""
    h, w = 4, 2
    features, masks = torch.ones(1, 1, h, w), torch.ones(3, h, w, dtype=torch.bool)
    rows, columns = ((torch.arange(-2.0, size + 2) + 0.5) / size for size in (h, w))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x, y], -1).view(1, -1, 1, 2)  # sets of one point
    inside = ((x > 0) & (x < 1) & (y > 0) & (y < 1)).flatten().float()
    pooled, weight = ops.masked_point_pool(
        features, masks, torch.zeros(3, dtype=torch.long), points
    )
    assert torch.equal(weight, inside.expand(3, -1))
    assert torch.equal(pooled[..., 0], weight)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_gradcheck(implementation: str, normalize: Normalize) -> None:
    features, *rest = case(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda f: ops.masked_point_pool(f, *rest, normalize)[0], features.requires_grad_(), fast_mode=True,
        nondet_tol=0.0 if cases.repeats(implementation) else NONDETERMINISM,
    )  # fmt: skip


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_no_instance_no_point_no_mask(implementation: str, normalize: Normalize) -> None:
    features, masks, owner, points = case()
    features.requires_grad_()
    for m, o, p, shape in (
        (masks[:0], owner[:0], points, (0, 2, 5)),
        (masks, owner, points[:, :0], (4, 0, 5)),
        (masks, owner, points[:, :, :0], (4, 2, 5)),
        (torch.zeros_like(masks), owner, points, (4, 2, 5)),
        (masks[:, :0], owner, points, (4, 2, 5)),
    ):
        pooled, weight = ops.masked_point_pool(features, m, o, p, normalize)
        assert pooled.shape == shape
        assert weight.shape == shape[:2]
        assert not pooled.any()
        assert not weight.any()
        (grad,) = torch.autograd.grad(pooled.sum(), features)
        assert not grad.any()


def test_a_mask_that_was_just_missed_gives_zero_and_no_gradient(implementation: str) -> None:
    features, _, owner, points = case()
    masks = torch.zeros(4, 7, 9, dtype=torch.bool)
    masks[:, 0, 0] = True
    points = points / 2 + 0.5  # the right lower quarter
    pooled, weight = ops.masked_point_pool(features.requires_grad_(), masks, owner, points)
    assert not weight.any()
    assert not pooled.any()
    assert not torch.autograd.grad(pooled.sum(), features)[0].any()


def test_instances_use_the_points_and_features_of_their_own_image(implementation: str) -> None:
    features, masks, _, points = case()
    owner = torch.tensor([2, 0, 1, 1])
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    for g, b in enumerate(owner.tolist()):
        alone, weight_alone = ops.masked_point_pool(
            features[b : b + 1], masks[g : g + 1], torch.tensor([0]), points[b : b + 1]
        )
        torch.testing.assert_close(pooled[g : g + 1], alone)
        torch.testing.assert_close(weight[g : g + 1], weight_alone)


def test_masks_are_bool_or_bytes_and_owners_of_32_or_64_bits(implementation: str) -> None:
    features, masks, owner, points = case()
    expected = ops.masked_point_pool(features, masks, owner, points)
    for m, o in itertools.product((masks.byte(), masks.byte() * 255), (owner.int(), owner)):
        for a, b in zip(ops.masked_point_pool(features, m, o, points), expected, strict=True):
            assert torch.equal(a, b)


def test_strides_do_not_matter(implementation: str) -> None:
    features, masks, owner, points = case()
    expected = ops.masked_point_pool(features, masks, owner, points)
    variants = (
        (features.contiguous(memory_format=torch.channels_last), masks, owner, points),
        (
            features.flip(3).contiguous().flip(3),
            masks.transpose(1, 2).contiguous().transpose(1, 2),
            owner,
            points,
        ),
        (
            features,
            masks,
            owner.repeat_interleave(2)[::2],
            points.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        ),
    )
    for arguments in variants:
        for a, b in zip(ops.masked_point_pool(*arguments), expected, strict=True):
            torch.testing.assert_close(a, b)
    one_set = points[:1, :1].expand_as(points)  # stride 0
    for a, b in zip(
        ops.masked_point_pool(features, masks, owner, one_set),
        ops.masked_point_pool(features, masks, owner, one_set.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_has_the_layout_of_the_features(
    implementation: str, layout: torch.memory_format
) -> None:
    if implementation == "reference":
        pytest.skip("plain torch chooses the layout of its gradients")
    features, masks, owner, points = case()
    features = features.contiguous(memory_format=layout).requires_grad_()
    pooled, _ = ops.masked_point_pool(features, masks, owner, points)
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert gradient.stride() == features.stride()


def test_repeats_bit_by_bit(implementation: str) -> None:
    arguments = case()
    for a, b in zip(
        ops.masked_point_pool(*arguments), ops.masked_point_pool(*arguments), strict=True
    ):
        assert torch.equal(a, b)


def test_infinite_points_are_outside_and_nan_propagates(implementation: str) -> None:
    features, masks, owner, points = case()
    masks = torch.ones_like(masks)
    outside, infinite, nan = points.clone(), points.clone(), points.clone()
    outside[:, 0, 0], infinite[:, 0, 0], nan[:, 0, 0] = 9, math.inf, math.nan
    expected = ops.masked_point_pool(features, masks, owner, outside)
    for a, b in zip(ops.masked_point_pool(features, masks, owner, infinite), expected, strict=True):
        assert torch.equal(a, b)
    pooled, weight = ops.masked_point_pool(features, masks, owner, nan)
    assert weight[:, 0].isnan().all()
    assert pooled[:, 0].isnan().all()
    assert torch.equal(pooled[:, 1], expected[0][:, 1])
    features[1] = math.nan
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    assert torch.equal(pooled.isnan().flatten(1).all(1), owner == 1)
    assert weight.isfinite().all()


# ---- sizes one below, at and one above what kernels count in


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize(
    "points", [(1, 255), (1, 256), (1, 257), (1, 2047), (1, 2048), (1, 2049), (2, 2100)], ids=str
)
def test_blocks_and_chunks_of_points(
    implementation: str, points: tuple[int, int], normalize: Normalize
) -> None:
    """On the CPU 2048 points of an image are a task's, whichever sets they are of; on the GPU 256
    of a set are a block's.

    The images have 3, 0 and 2 instances. In the first all points hit all of them, which is the most
    that a chunk holds.
    """
    T, K = points
    features, masks, _, at = cases.masked_point_pool(
        cases.PoolShape(3, 3, (5, 6), (9, 7), 5, T, K), dtype=torch.float64
    )
    owner = torch.tensor([2, 0, 0, 2, 0])
    masks = masks | (owner == 0)[:, None, None]
    check((features, masks, owner, at), normalize)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("C", [15, 16, 17, 63, 64, 65, 127, 128, 129])
def test_blocks_of_channels(implementation: str, C: int, dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        features, *rest = cases.masked_point_pool(
            cases.PoolShape(2, C, (4, 5), (6, 3), 3, 2, 9), dtype=dtype
        )
        check((features.contiguous(memory_format=layout), *rest), "mask")


@pytest.mark.parametrize("instances", [7, 8, 9, 31, 32, 33])
def test_rounds_of_instances(implementation: str, instances: int) -> None:
    """The instances of an image alternate with those of another."""
    shape = cases.PoolShape(2, 3, (5, 6), (9, 7), 2 * instances, 2, 20)
    features, masks, _, points = cases.masked_point_pool(shape, dtype=torch.float64)
    check((features, masks, torch.arange(2 * instances) % 2, points), "mask")


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (5, 13), (1, 127), (16, 8), (3, 43)], ids=str)
def test_tiles_of_pixels(implementation: str, size: tuple[int, int]) -> None:
    """63, 64, 65, 127, 128 and 129 pixels: what blocks own that add up gradients in order."""
    for dtype in (torch.float64, torch.float32):
        check(
            cases.masked_point_pool(cases.PoolShape(2, 3, size, (6, 8), 4, 2, 30), dtype=dtype),
            "mask",
        )


@pytest.mark.parametrize("implementation", cases.implementations(OP, emulated=False), indirect=True)
def test_as_many_points_as_the_model_has(implementation: str) -> None:
    """12544 points in each of 5 sets: 30 chunks and a bit, and sums of a thousand times more than
    in other tests."""
    for dtype in (torch.float64, torch.float32):
        check(
            cases.masked_point_pool(
                cases.PoolShape(2, 8, (16, 20), (64, 80), 6, 5, 12544), dtype=dtype
            ),
            "mask",
        )


Arguments = list[Any]
ERRORS: dict[str, tuple[type[Exception], str, int, Callable[[Any], Any]]] = {
    "no tensor": (TypeError, "features must be a torch.Tensor, got list", 0, lambda a: [a]),
    "integers": (TypeError, "features must be of dtype .*, got int64", 0, lambda a: a.long()),
    "rank": (
        ValueError,
        r"features must have the 4 dimensions BCHW, got \(3, 75\)",
        0,
        lambda a: a.flatten(1),
    ),
    "float masks": (
        TypeError,
        "masks must be of dtype bool, uint8, got float32",
        1,
        lambda a: a.float(),
    ),
    "count": (
        ValueError,
        r"masks \(Ghw\) has G = 3 in \(3, 7, 9\), but owner has G = 4",
        1,
        lambda a: a[:3],
    ),
    "owner float": (
        TypeError,
        "owner must be of dtype int64, int32, got float32",
        2,
        lambda a: a.float(),
    ),
    "coordinates": (ValueError, r"points \(BTK2\) must have size 2 there", 3, lambda a: a[..., :1]),
    "images": (
        ValueError,
        r"points \(BTK2\) has B = 2 in .*, but features has B = 3",
        3,
        lambda a: a[:2],
    ),
    "precision": (TypeError, "points .*float64", 3, lambda a: a.double()),
    "normalize": (
        ValueError,
        'normalize must be "mask" or "points", got \'mean\'',
        4,
        lambda _: "mean",
    ),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(implementation: str, name: str) -> None:
    error, message, position, change = ERRORS[name]
    arguments: Arguments = [*case(), "mask"]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=f"^{OP}: {message}"):
        ops.masked_point_pool(*arguments)


@pytest.mark.parametrize("wrong", [3, -1])
def test_an_owner_out_of_range(implementation: str, wrong: int) -> None:
    """An error; on a GPU, where nothing waits to look at it, an instance without an image."""
    features, masks, owner, points = case()
    changed = owner.clone()
    changed[1] = wrong
    if cases.looks_at_indices(implementation):
        with pytest.raises(ValueError, match=rf"^{OP}: owner\[1\] = {wrong} is outside \[0, 2\]"):
            ops.masked_point_pool(features, masks, changed, points)
        return
    others, results = torch.tensor([0, 2, 3]), []
    for instances, summed in ((owner, others), (changed, torch.arange(4))):
        leaf = features.clone().requires_grad_()
        pooled, weight = ops.masked_point_pool(leaf, masks, instances, points)
        results.append((pooled.detach(), weight, *torch.autograd.grad(pooled[summed].sum(), leaf)))
    expected, (pooled, weight, gradient) = results
    assert not pooled[1].any()
    assert not weight[1].any()
    assert torch.equal(pooled[others], expected[0][others])
    assert torch.equal(weight[others], expected[1][others])
    assert_same(gradient, expected[2], cases.repeats(implementation))
