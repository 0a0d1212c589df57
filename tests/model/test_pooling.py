"""Eq. 1 from the settings to the queries: which points look at what, and what becomes of it.

B images, G instances, T sets, K points, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask import ops
from alignmask.config import AlignedQueryConfig
from alignmask.model.aligned_queries import AlignedQueryGenerator
from alignmask.model.pixel_decoder import PixelFeatures
from tests import tiny
from tests.covers import covers
from tests.model import peers


@dataclass
class Call:
    masks_GHW: Tensor
    points_BTK2: Tensor


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What is given to the op, call by call: the points are random, and the queries are compared
    for those points."""
    seen: list[Call] = []
    original = ops.masked_point_pool

    def spy(embedding: Tensor, masks: Tensor, owner: Tensor, points: Tensor, *rest: Any) -> Any:
        seen.append(Call(masks, points))
        return original(embedding, masks, owner, points, *rest)

    monkeypatch.setattr(ops, "masked_point_pool", spy)
    return seen


def plain_query(
    generator: AlignedQueryGenerator,
    embedding_EHW: Tensor,
    mask_HW: Tensor,
    points_K2: Tensor,
    normalize: str,
) -> Tensor:
    """Eq. 1: sample both, multiply, average, normalise, MLP."""
    grid = (2 * points_K2 - 1)[None, None]
    features_EK = F.grid_sample(
        embedding_EHW[None], grid, padding_mode="zeros", align_corners=False
    )[0, :, 0]
    mask_K = F.grid_sample(
        mask_HW[None, None].float(), grid, padding_mode="zeros", align_corners=False
    )[0, 0, 0]
    divisor = mask_K.sum() if normalize == "mask" else len(points_K2)
    pooled_E = (features_EK * mask_K).sum(1) / divisor
    x = F.layer_norm(pooled_E, pooled_E.shape, generator.norm.weight, generator.norm.bias)
    for linear in (generator.mlp[0], generator.mlp[2]):
        x = (x @ linear.weight.T + linear.bias).clamp(min=0)
    return x @ generator.mlp[4].weight.T + generator.mlp[4].bias


@pytest.mark.parametrize("normalize", ["mask", "points"])
@covers("model.aligned_queries", "model.aligned_queries.count", "model.aligned_queries.point_sets")
@covers("model.aligned_queries.points", "model.aligned_queries.normalize")
@torch.no_grad()
def test_queries_of_a_model_are_eq_1_of_its_pixel_embedding(
    normalize: Any, calls: list[Call]
) -> None:
    """Two images with three and two instances, four sets of 90 points, ten slots: the last two of
    the first image's twelve queries are cut off."""
    config = AlignedQueryConfig(count=10, point_sets=4, points=90, normalize=normalize)
    model = tiny.model(aligned_queries=config).train()
    peers.scatter(model)
    batch = tiny.batch((3, 2))
    prediction = model(batch)
    aligned = prediction.aligned
    assert aligned is not None
    (call,) = calls
    assert torch.equal(call.masks_GHW, batch.masks_GHW)
    assert call.points_BTK2.shape == (2, 4, 90, 2)
    x, y = call.points_BTK2.unbind(-1)
    for part in (x, y, x[0], y[1], x[:, 3]):  # uniform over the image, in each set by itself
        assert part.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / part.numel()) ** 0.5)
        assert part.var() == pytest.approx(1 / 12, rel=0.3)
    assert call.points_BTK2.flatten(0, 2).unique(dim=0).shape[0] == 2 * 4 * 90
    expected = {
        0: [(instance, t) for t in range(4) for instance in (0, 1, 2)][:10],
        1: [(instance, t) for t in range(4) for instance in (3, 4)],
    }
    for b, slots in expected.items():
        for slot, (instance, t) in enumerate(slots):
            query = plain_query(
                model.aligned_queries, prediction.pixel_embedding_BEHW[b], batch.masks_GHW[instance],
                call.points_BTK2[b, t], normalize,
            )  # fmt: skip
            assert (aligned.instance_BA[b, slot], aligned.set_BA[b, slot]) == (instance, t)
            torch.testing.assert_close(aligned.features_BAE[b, slot], query, rtol=1e-3, atol=1e-4)
    assert not aligned.live_BA[1, 8:].any()
    # The queries differ, and the decoder gets them: its first output reads them as they are.
    assert aligned.features_BAE[0].diff(dim=0).abs().amax(1).min() > 1e-3
    classes, _ = model.query_decoder.heads(aligned.features_BAE)
    torch.testing.assert_close(
        prediction.class_logits_LBRC[0, :, 6:], classes, rtol=1e-4, atol=1e-5
    )


def test_dividing_by_all_points_makes_small_objects_faint() -> None:
    """The two denominators differ before the norm, whose eps tells them apart in a faint
    embedding."""
    batch, found = tiny.batch((1,)), []
    for normalize in ("mask", "points"):
        torch.manual_seed(0)
        generator = AlignedQueryGenerator(replace(tiny.ALIGNED, normalize=normalize), 32, layers=3)
        embedding = torch.randn(1, 32, 16, 24) * 0.003
        torch.manual_seed(1)
        found.append(generator(PixelFeatures([], embedding), batch).features_BAE)
    assert (found[0] - found[1]).abs().max() > 0.05


def test_without_aligned_queries_none_are_made() -> None:
    model = tiny.model(aligned_queries=None).train()
    prediction = model(tiny.batch())
    assert model.aligned_queries is None
    assert prediction.aligned is None
    assert prediction.class_logits_LBRC.shape[2] == prediction.queries == 6
    assert not [name for name in model.state_dict() if "aligned" in name]


@pytest.mark.parametrize("detach", [False, True])
@covers("model.aligned_queries.detach_pixel_embedding")
def test_detaching_keeps_aligned_queries_from_the_pixel_decoder(detach: bool) -> None:
    """Their own features: the gradient of the first output's classes, which nothing else joins to
    the pixels."""
    model = tiny.model(aligned_queries=replace(tiny.ALIGNED, detach_pixel_embedding=detach)).train()
    model(tiny.batch()).class_logits_LBRC[0].square().sum().backward()
    assert (model.pixel_decoder.embed.weight.grad is None) == detach
    assert model.aligned_queries.mlp[0].weight.grad.any()
