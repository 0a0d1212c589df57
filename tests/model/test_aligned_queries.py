"""Aligned Query Learning: which slot gets which query, and that object queries never notice
(section 2.2, Fig. 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignmask.config import AlignedQueryConfig, Visible
from alignmask.model.aligned_queries import AlignedQueries, AlignedQueryGenerator, assign_slots
from alignmask.model.pixel_decoder import PixelFeatures
from alignmask.model.query_decoder import _aligned_visibility
from tests import tiny


def features(embedding_BEHW: torch.Tensor) -> PixelFeatures:
    return PixelFeatures([], embedding_BEHW)


def expected_slots(counts: list[int], sets: int, count: int) -> list[list[tuple[int, int]]]:
    """Fig. 3 in plain loops: per image (instance of the batch, set) set by set, the first `count`
    of them."""
    slots, first = [], 0
    for instances in counts:
        listed = [(first + i, t) for t in range(sets) for i in range(instances)]
        slots.append(listed[:count])
        first += instances
    return slots


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    sets=st.integers(1, 4),
    count=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_slots_are_filled_set_by_set_and_cut_at_the_count(
    counts: list[int], sets: int, count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    batch = tiny.batch(tuple(counts), (32, 32), seed)
    batch.masks_GHW.fill_(True)  # no set misses an instance
    generator = AlignedQueryGenerator(
        AlignedQueryConfig(count=count, point_sets=sets, points=8), 32, layers=3
    )
    aligned = generator(features(torch.randn(len(counts), 32, 8, 8)), batch)
    for b, expected in enumerate(expected_slots(counts, sets, count)):
        padding = [(-1, -1)] * (aligned.instance_BA.shape[1] - len(expected))
        found = list(zip(aligned.instance_BA[b].tolist(), aligned.set_BA[b].tolist(), strict=True))
        assert found == expected + padding
    assert not aligned.features_BAE[~aligned.live_BA].any()
    assert aligned.features_BAE[aligned.live_BA].any() or not aligned.live_BA.any()


def test_slots_of_two_images() -> None:
    """Two instances in the first image and one in the second, two point sets; the second set missed
    the first instance."""
    made = torch.tensor([[True, False], [True, True], [True, True]])
    assert assign_slots(made, [2, 1], 4).tolist() == [
        [0, -1],
        [1, 3],
        [0, 1],
    ]  # a missed query leaves slot 2 empty
    assert assign_slots(made, [2, 1], 3).tolist() == [
        [0, -1],
        [1, -1],
        [0, 1],
    ]  # N_AQ drops the last of the list
    assert assign_slots(made, [2, 1], 1).tolist() == [[0, -1], [-1, -1], [0, -1]]


def test_a_query_is_the_mlp_of_the_normalised_mean_over_the_mask() -> None:
    """Eq. 1 on a constant embedding per mask side: the mean over the mask's points is the embedding
    there."""
    generator = AlignedQueryGenerator(
        AlignedQueryConfig(count=4, point_sets=1, points=2000), 32, layers=3
    )
    left, right = torch.randn(32), torch.randn(32)
    embedding = torch.cat(
        (left.view(1, 32, 1, 1).expand(1, 32, 8, 8), right.view(1, 32, 1, 1).expand(1, 32, 8, 8)), 3
    )
    masks = torch.zeros(2, 64, 128, dtype=torch.bool)
    # Away from the seam, where bilinear sampling mixes both sides; and from the zero border.
    masks[0, :, :56] = True
    masks[1, :, 72:] = True
    masks[:, :4] = masks[:, -4:] = masks[:, :, :4] = masks[:, :, -4:] = False
    aligned = generator(features(embedding), replace(tiny.batch((2,)), masks_GHW=masks))
    for slot, side in enumerate((left, right)):
        expected = generator.mlp(generator.norm(side))
        torch.testing.assert_close(aligned.features_BAE[0, slot], expected, rtol=1e-4, atol=1e-4)


def test_an_instance_that_a_set_missed_makes_no_query() -> None:
    batch = tiny.batch((2,), (32, 32))
    batch.masks_GHW[0] = False  # nothing to hit
    generator = AlignedQueryGenerator(tiny.ALIGNED, 32, layers=3)
    aligned = generator(features(torch.randn(1, 32, 8, 8)), batch)
    assert 0 not in aligned.instance_BA.tolist()[0]
    assert aligned.live_BA.sum() == 3  # the other instance, once per set


@pytest.mark.parametrize(
    ("sees", "expected"),
    [
        (
            "objects+set",
            [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0]],
        ),
        ("set", [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]),
        ("all", [[1, 1, 1, 1, 1, 0]] * 4),
    ],
)
def test_visibility(sees: Visible, expected: list[list[int]]) -> None:
    aligned = AlignedQueries(
        torch.zeros(1, 4, 8), torch.tensor([[0, 1, 0, -1]]), torch.tensor([[0, 0, 1, -1]])
    )  # two instances in set 0, one of them in set 1, padding
    assert _aligned_visibility(aligned, 2, sees)[0].int().tolist() == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_self_attention": False},
        {"share_masked_attention": False},
        {"share_self_attention": False, "share_masked_attention": False},
        {"visible": "set"},
        {"visible": "all"},
        {"mask_noise": 0.2},
        {"mask_noise": 0.2, "share_masked_attention": False},
    ],
    ids=str,
)
def test_object_queries_are_the_same_with_and_without_aligned_queries(
    changes: dict[str, Any],
) -> None:
    """Whatever is shared and whoever sees whom, nothing leaks, and no padding slot makes a NaN."""
    model, batch = (
        tiny.model(aligned_queries=replace(tiny.ALIGNED, **changes)).train(),
        tiny.batch(),
    )
    on = model(batch)
    (on.class_logits_LBRC.square().mean() + on.mask_embedding_LBRE.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        model.aligned_queries = None
        off = model(batch)
    assert on.aligned is not None
    assert not on.aligned.live_BA.all()
    assert on.class_logits_LBRC.shape[2] == 6 + 7
    torch.testing.assert_close(
        on.class_logits_LBRC[:, :, :6], off.class_logits_LBRC, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        on.mask_embedding_LBRE[:, :, :6], off.mask_embedding_LBRE, rtol=1e-5, atol=1e-5
    )


def test_no_output_or_gradient_of_an_object_query_depends_on_the_ground_truth() -> None:
    model, batch = tiny.model().train(), tiny.batch()
    other = tiny.batch(seed=5)
    other = replace(batch, masks_GHW=other.masks_GHW)
    results = []
    for masks in (batch, other):
        model.zero_grad()
        torch.manual_seed(0)
        prediction = model(masks)
        assert prediction.aligned is not None
        objects = (
            prediction.class_logits_LBRC[:, :, :6].square().sum()
            + prediction.mask_embedding_LBRE[:, :, :6].sum()
        )
        (from_aligned,) = torch.autograd.grad(
            objects, prediction.aligned.features_BAE, retain_graph=True, allow_unused=True
        )
        assert from_aligned is None or not from_aligned.any()
        objects.backward()
        results.append(
            (objects.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None])
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for first, second in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_aligned_queries_do_depend_on_the_ground_truth() -> None:
    model, batch = tiny.model().train(), tiny.batch()
    outputs = []
    for masks in (batch, replace(batch, masks_GHW=tiny.batch(seed=5).masks_GHW)):
        torch.manual_seed(0)
        outputs.append(model(masks).aligned_rows.class_logits_LBRC[-1])
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_eval_mode_makes_no_aligned_queries() -> None:
    model, batch = tiny.model().eval(), tiny.batch()
    with torch.no_grad():
        prediction = model(batch)
    assert prediction.aligned is None
    assert prediction.class_logits_LBRC.shape[2] == 6


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_into_the_pixel_embedding_is_a_switch(detach: bool) -> None:
    batch = tiny.batch((2,))
    generator = AlignedQueryGenerator(
        replace(tiny.ALIGNED, detach_pixel_embedding=detach), 32, layers=3
    )
    embedding = torch.randn(1, 32, 16, 24, requires_grad=True)
    aligned = generator(features(embedding), batch)
    aligned.features_BAE.square().sum().backward()
    assert (embedding.grad is None) == detach


def test_a_batch_without_instances_trains() -> None:
    prediction = tiny.model().train()(tiny.batch((0, 0)))
    assert prediction.aligned is not None
    assert prediction.aligned.features_BAE.shape[1] == 0
    assert prediction.class_logits_LBRC.isfinite().all()


def test_learned_position_is_a_switch() -> None:
    assert tiny.model().query_decoder.aligned_position is None
    model = tiny.model(aligned_queries=replace(tiny.ALIGNED, learned_position=True)).train()
    model(tiny.batch()).aligned_rows.class_logits_LBRC.sum().backward()
    assert model.query_decoder.aligned_position.grad.any()


def test_live_queries_are_counted_before_there_is_an_embedding() -> None:
    """Of few points in a set, all may miss an instance; that slot stays empty."""
    generator = AlignedQueryGenerator(replace(tiny.ALIGNED, points=4), 32, layers=3)
    batch = tiny.batch((3, 0, 2))
    points_BTK2, counted = generator.count_live(batch)
    made = generator(features(torch.rand(3, 32, 16, 24)), batch, points_BTK2)
    live = int((made.instance_BA >= 0).sum())
    assert 0 < live < 7 + 6
    assert int(counted) == live
