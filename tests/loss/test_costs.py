"""Matching costs against the plain form, with weights that are all unlike, and their directions as
properties."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss.label_assignment import mask_ious
from alignmask.loss.matcher import class_cost, cost, match
from alignmask.model.heads import Prediction
from tests.covers import covers
from tests.loss import oracle
from tests.loss.scenes import scene

KINDS = [
    ("softmax", "probability"),
    ("focal", "probability"),
    ("focal", "focal"),
    ("quality_focal", "probability"),
]
KINDS += [("quality_focal", "focal")]


@covers(
    "loss.class_weight",
    "loss.mask_weight",
    "loss.dice_weight",
    "loss.iou_cost",
    "loss.class_cost",
    "loss.gamma",
)
@pytest.mark.parametrize("resolution", ["image", "prediction"])
@pytest.mark.parametrize(("classification", "kind"), KINDS)
def test_costs_are_weighted_as_the_configuration_says(
    classification: str, kind: str, resolution: str
) -> None:
    prediction, batch = scene(softmax=classification == "softmax")
    config = LossConfig(
        class_weight=2.5, mask_weight=3.0, dice_weight=7.0, iou_cost=0.9, gamma=1.5, class_cost=kind,
        iou_resolution=resolution,
    )  # fmt: skip
    points_BK2 = torch.rand(3, 40, 2)
    found = cost(
        prediction, batch, config, classification, points_BK2, mask_ious(prediction, batch, config)
    )
    for output in range(2):
        found_B = found[output].split(batch.counts)
        for b in range(batch.batch_size):
            by_hand = oracle.cost(
                prediction, batch, classification, config, points_BK2[b], output, b
            )
            torch.testing.assert_close(found_B[b].double(), by_hand, rtol=1e-4, atol=1e-4)


def test_class_costs_by_hand() -> None:
    """Of probability 0.8 (and 0.2): Deformable DETR's alpha = 0.25 on the positive side."""
    logits = torch.tensor([math.log(4.0), -math.log(4.0)])
    found = class_cost(logits, LossConfig(), "quality_focal")
    assert found.tolist() == pytest.approx([-0.8, -0.2])
    for gamma in (2.0, 1.5):
        config = LossConfig(class_cost="focal", gamma=gamma)
        for classification in ("focal", "quality_focal"):
            found = class_cost(logits, config, classification)
            likely = -0.25 * 0.2**gamma * math.log(0.8) + 0.75 * 0.8**gamma * math.log(0.2)
            unlikely = -0.25 * 0.8**gamma * math.log(0.2) + 0.75 * 0.2**gamma * math.log(0.8)
            assert found.tolist() == pytest.approx([likely, unlikely])
    found = class_cost(
        torch.tensor([2.0, 1.0, 0.0]).log(), LossConfig(class_cost="focal"), "softmax"
    )
    assert found.tolist() == pytest.approx([-2 / 3, -1 / 3, 0.0])  # softmax has but one cost


@pytest.mark.parametrize(("classification", "kind"), KINDS)
def test_the_query_with_the_highest_score_of_the_right_class_is_matched(
    classification: str, kind: str
) -> None:
    """Masks alike: only the class decides, at every output for itself."""
    prediction, batch = scene((1, 0, 1), outputs=3, softmax=classification == "softmax")
    prediction.mask_embedding_LBRE.zero_()
    prediction.class_logits_LBRC.fill_(-1.0)
    for output in range(3):
        for g, b in enumerate((0, 2)):
            right = int(batch.labels_G[g])
            prediction.class_logits_LBRC[output, b, output + g, right] = 1.0
            prediction.class_logits_LBRC[output, b, 4, (right + 1) % 4] = 3.0  # a wrong class
            prediction.class_logits_LBRC[output, b, 5, right] = -3.0
    config = LossConfig(points=20, class_cost=kind)
    found = match(prediction, batch, config, classification)
    assert found.tolist() == [[0, 1], [1, 2], [2, 3]]


def moved_masks() -> tuple[Prediction, Batch]:
    """Query q's mask is the instance moved q cells to the side."""
    prediction, batch = scene((1,), outputs=1, queries=4, slots=0)
    batch.masks_GHW.zero_()
    batch.masks_GHW[0, 8:24, 8:24] = True
    prediction.class_logits_LBRC.zero_()
    inside = torch.full((8, 16), -6.0)
    inside[2:6, 2:6] = 6.0
    pixels = torch.stack([inside.roll(q, 1) for q in range(4)])[None]
    return replace(
        prediction, mask_embedding_LBRE=torch.eye(4)[None, None], pixel_embedding_BEHW=pixels
    ), batch


@pytest.mark.parametrize("weight", ["mask_weight", "dice_weight", "iou_cost"])
def test_a_better_mask_costs_less(weight: str) -> None:
    prediction, batch = moved_masks()
    nothing = LossConfig(class_weight=0, mask_weight=0, dice_weight=0)
    config = replace(nothing, **{weight: 1.0})
    found = cost(
        prediction,
        batch,
        config,
        "quality_focal",
        torch.rand(1, 400, 2),
        mask_ious(prediction, batch, config),
    )
    costs = found[0, 0].tolist()
    assert all(better < worse - 0.02 for better, worse in pairwise(costs))
    assert costs[0] == pytest.approx(-1 if weight == "iou_cost" else 0, abs=0.3)


@covers("loss.points")
def test_masks_are_compared_at_as_many_points_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prediction, batch = scene()
    drawn, compare = [], cost
    monkeypatch.setattr(
        "alignmask.loss.matcher.cost", lambda *args: drawn.append(args[4]) or compare(*args)
    )
    for _ in range(2):
        match(prediction, batch, LossConfig(points=23), "quality_focal")
    first, second = drawn
    assert first.shape == (3, 23, 2)
    assert ((first >= 0) & (first < 1)).all()
    assert not torch.equal(first, second)  # new ones every time ...
    assert not torch.equal(first[0], first[1])  # ... and others in every image
