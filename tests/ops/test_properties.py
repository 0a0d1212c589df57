"""Relations that hold whatever the numbers are, of masked_point_pool, mask_iou and
quality_focal_loss.

Shapes: B images, C channels, G instances, T point sets, K points, Q predictions, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignmask import ops
from tests.ops import cases, strategies

F64 = torch.float64


def permutation(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["reference", "kernel"], autouse=True)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """In one thread: these tensors are small, and on a busy machine threads would mostly wait for
    each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ops.use_reference() if request.param == "reference" else torch.no_grad():
        yield
    torch.set_num_threads(threads)


# ---- masked_point_pool


@given(
    strategies.pool_shapes(),
    strategies.layouts,
    strategies.seeds,
    st.sampled_from(("mask", "points")),
)
def test_pooling_is_linear_in_the_features(
    shape: cases.PoolShape, layout: str, seed: int, normalize: str
) -> None:
    features, masks, owner, points = cases.masked_point_pool(shape, layout, F64, seed=seed)
    other = torch.randn(features.shape, dtype=F64)
    a, b = (ops.masked_point_pool(f, masks, owner, points, normalize)[0] for f in (features, other))
    both, _ = ops.masked_point_pool(2 * features - 3 * other, masks, owner, points, normalize)
    torch.testing.assert_close(both, 2 * a - 3 * b, rtol=1e-9, atol=1e-9)


@given(strategies.pool_shapes(), strategies.layouts, strategies.seeds)
def test_order_of_instances_channels_sets_and_points(
    shape: cases.PoolShape, layout: str, seed: int
) -> None:
    features, masks, owner, points = cases.masked_point_pool(shape, layout, F64, seed=seed)
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    g, c, t, k = (permutation(n, seed) for n in (shape.G, shape.C, shape.T, shape.K))
    moved, moved_weight = ops.masked_point_pool(
        features[:, c], masks[g], owner[g], points[:, t][:, :, k]
    )
    torch.testing.assert_close(moved, pooled[g][:, t][:, :, c], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved_weight, weight[g][:, t], rtol=1e-9, atol=1e-9)


@given(strategies.pool_shapes(), strategies.seeds)
def test_a_full_mask_averages_constant_features(shape: cases.PoolShape, seed: int) -> None:
    """Away from the border, where half the sample is zero."""
    features, masks, owner, points = cases.masked_point_pool(shape, "uniform", F64, seed=seed)
    # The middle: all pixels around it exist, unless the map is one pixel wide.
    inside = 0.5 + (points - 0.5) * 0
    pooled, weight = ops.masked_point_pool(
        torch.full_like(features, 7), torch.ones_like(masks), owner, inside
    )
    if 0 in masks.shape[1:] or 0 in points.shape[1:3]:
        assert not weight.any()
    else:
        torch.testing.assert_close(weight, torch.full_like(weight, shape.K))
        if 0 not in shape.features:
            torch.testing.assert_close(pooled, torch.full_like(pooled, 7))


@given(strategies.pool_shapes(), strategies.layouts, strategies.seeds)
def test_disjoint_masks_add_up(shape: cases.PoolShape, layout: str, seed: int) -> None:
    features, masks, owner, points = cases.masked_point_pool(shape, layout, F64, seed=seed)
    part = torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    whole, whole_weight = ops.masked_point_pool(features, masks, owner, points, "points")
    parts = [
        ops.masked_point_pool(features, masks & side, owner, points, "points")
        for side in (part, ~part)
    ]
    torch.testing.assert_close(whole_weight, parts[0][1] + parts[1][1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-9, atol=1e-9)


# ---- mask_iou


@given(strategies.iou_shapes(), strategies.dtypes, strategies.seeds)
def test_iou_is_between_zero_and_one_and_follows_the_order(
    shape: cases.IouShape, dtype: torch.dtype, seed: int
) -> None:
    predictions, targets, owner = cases.mask_iou(shape, dtype, seed)
    iou = ops.mask_iou(predictions, targets, owner)
    assert ((iou >= 0) & (iou <= 1)).all()
    g, q = permutation(shape.G, seed), permutation(shape.Q, seed)
    assert torch.equal(ops.mask_iou(predictions[:, q], targets[g], owner[g]), iou[g][:, q])
    # Half precision has ties at the threshold, which fall as the order of additions has it.
    if dtype == F64:
        for axis in (-1, -2):
            assert torch.equal(ops.mask_iou(predictions.flip(axis), targets.flip(axis), owner), iou)


@given(
    st.integers(0, 5),
    st.integers(0, 5),
    st.tuples(st.integers(0, 20), st.integers(0, 70)),
    strategies.seeds,
)
def test_iou_is_symmetric_and_equals_pycocotools(
    first: int, second: int, size: tuple[int, int], seed: int
) -> None:
    """Exactly, in float64."""
    mask_utils = pytest.importorskip("pycocotools.mask")
    generator = torch.Generator().manual_seed(seed)
    a, b = (cases.blobs(count, size, generator) for count in (first, second))

    def as_logits(masks: torch.Tensor) -> torch.Tensor:
        return (masks.double() - 0.5)[None]

    iou = ops.mask_iou(as_logits(a), b, torch.zeros(second, dtype=torch.long))
    assert torch.equal(iou, ops.mask_iou(as_logits(b), a, torch.zeros(first, dtype=torch.long)).T)
    if first and second and 0 not in size:
        encoded = [
            [mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in m]
            for m in (a, b)
        ]
        assert np.array_equal(mask_utils.iou(*encoded, [False] * second), iou.T.numpy())


@given(strategies.iou_shapes(), strategies.seeds)
def test_a_mask_has_iou_one_with_itself_alone(shape: cases.IouShape, seed: int) -> None:
    _, targets, owner = cases.mask_iou(shape, F64, seed)
    logits = (targets.double() - 0.5)[None]
    iou = ops.mask_iou(logits, targets, torch.zeros_like(owner))
    filled = targets.flatten(1).any(1)
    assert torch.equal(iou.diagonal() == 1, filled)
    same = (targets[:, None] == targets[None]).flatten(2).all(2)
    assert torch.equal(iou == 1, same & filled)


# ---- quality_focal_loss


@given(strategies.loss_shapes(), strategies.seeds, st.sampled_from((1.0, 2.0, 3.5)))
def test_rows_and_classes_are_independent(shape: cases.LossShape, seed: int, gamma: float) -> None:
    logits, label, iou = cases.quality_focal_loss(shape, F64, seed=seed)
    loss = ops.quality_focal_loss(logits, label, iou, gamma)
    r, c = permutation(shape.R, seed), permutation(shape.C, seed)
    place = torch.cat([c.argsort(), torch.tensor([-1])])  # where a class went; -1 stays
    moved = ops.quality_focal_loss(logits[:, c], place[label], iou, gamma)
    torch.testing.assert_close(moved, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        ops.quality_focal_loss(logits[r], label[r], iou[r], gamma), loss[r], rtol=1e-12, atol=0
    )


@given(strategies.loss_shapes(), strategies.seeds)
def test_a_negatives_loss_falls_with_its_iou(shape: cases.LossShape, seed: int) -> None:
    """From θ on, and is never negative; below θ it does not depend on it."""
    logits, label, _ = cases.quality_focal_loss(shape, F64, seed=seed)
    ious = torch.linspace(0, 1, 21, dtype=F64)
    losses = torch.stack(
        [
            ops.quality_focal_loss(logits, label * 0 - 1, torch.full_like(logits[:, 0], i))
            for i in ious
        ]
    )
    assert (losses >= 0).all()
    assert (losses.diff(dim=0) <= 1e-12 * losses[0]).all()
    assert torch.equal(losses[0].expand(10, -1), losses[:10])
    torch.testing.assert_close(losses[-1], torch.zeros_like(losses[0]))


@given(strategies.loss_shapes(), strategies.seeds)
def test_the_best_score_is_the_iou(shape: cases.LossShape, seed: int) -> None:
    """The label's term is least, and zero, where the score equals the target."""
    logits, label, iou = cases.quality_focal_loss(shape, F64, seed=seed)
    label = label.clamp(min=0)
    best = logits.scatter(1, label[:, None], iou.clamp(1e-6, 1 - 1e-6).logit()[:, None])
    least = ops.quality_focal_loss(best, label, iou)
    for step in (-0.5, 0.5):
        other = best.scatter_add(1, label[:, None], torch.full_like(best[:, :1], step))
        assert (ops.quality_focal_loss(other, label, iou) > least).all()
