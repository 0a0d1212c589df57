"""All losses, at every output and for both kinds of query, against the plain form: from the
configuration to the gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from alignmask.config import LossConfig
from alignmask.loss import Criterion, Losses, LossTerms
from tests import tiny
from tests.covers import covers
from tests.loss import oracle
from tests.loss.scenes import row_points, samples_at_row_points, scene, with_gradients

ALL = ("softmax", "focal", "quality_focal")
PLAIN = LossConfig(points=30)
SEED = 5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Puts `row_points` in the place of random points; what was asked of `uncertain_samples`."""
    calls: list[tuple[float, ...]] = []

    def samples(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(arguments[3:])
        return samples_at_row_points(*arguments)

    monkeypatch.setattr("alignmask.loss.criterion.uncertain_samples", samples)
    return calls


def found(
    classification: str, config: LossConfig, **of_scene: object
) -> tuple[Losses, list[torch.Tensor]]:
    prediction, batch = scene(softmax=classification == "softmax", **of_scene)
    prediction, leaves = with_gradients(prediction)
    torch.manual_seed(SEED)  # the matcher's points are the first numbers drawn
    losses = Criterion(tiny.model_config(classification=classification), config)(prediction, batch)
    return losses, leaves


def expected(
    classification: str, config: LossConfig, **of_scene: object
) -> tuple[dict, list[torch.Tensor]]:
    prediction, batch = scene(softmax=classification == "softmax", **of_scene)
    prediction, leaves = with_gradients(prediction)
    torch.manual_seed(SEED)
    points = torch.rand(batch.batch_size, config.points, 2)
    losses = oracle.losses(
        prediction,
        batch,
        classification,
        config,
        points,
        lambda logits: row_points(logits, config.points),
    )
    return losses, leaves


plain = cache(lambda classification: oracle.total(expected(classification, PLAIN)[0], PLAIN).item())


def check(classification: str, config: LossConfig, **of_scene: object) -> float:
    """Losses, their total and its gradients equal the plain form's; returns the total."""
    losses, leaves = found(classification, config, **of_scene)
    by_hand, leaves_by_hand = expected(classification, config, **of_scene)
    for name, value in oracle.by_name(losses).items():
        torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-4, atol=1e-6, msg=name)
    total, total_by_hand = losses.total(config), oracle.total(by_hand, config)
    torch.testing.assert_close(total.double(), total_by_hand, rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    by_hand = torch.autograd.grad(
        total_by_hand, leaves_by_hand, allow_unused=True, materialize_grads=True
    )
    for gradient, right in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-5)
    return total_by_hand.item()


@pytest.mark.parametrize("classification", ALL)
@pytest.mark.parametrize(
    ("changes", "matters_to"),
    [
        pytest.param({"class_weight": 0.5}, ALL, marks=covers("loss.class_weight")),
        pytest.param({"class_weight": 70.0}, ALL, marks=covers("loss.class_weight")),
        pytest.param(
            {"mask_weight": 30.0, "dice_weight": 0.7}, ALL, marks=covers("loss.mask_weight")
        ),
        pytest.param(
            {"mask_weight": 0.3, "dice_weight": 70.0}, ALL, marks=covers("loss.dice_weight")
        ),
        pytest.param({"aligned_weight": 0.3}, ALL, marks=covers("loss.aligned_weight")),
        pytest.param(
            {"no_object_weight": 0.7}, ("softmax",), marks=covers("loss.no_object_weight")
        ),
        pytest.param(
            {"class_cost": "focal", "class_weight": 9.0}, ALL, marks=covers("loss.class_cost")
        ),
        pytest.param({"iou_cost": 60.0}, ALL, marks=covers("loss.iou_cost")),
        pytest.param({"gamma": 1.5}, ("focal", "quality_focal"), marks=covers("loss.gamma")),
        pytest.param({"gamma": 3.0}, ("focal", "quality_focal"), marks=covers("loss.gamma")),
        pytest.param({"theta": 0.3}, ("quality_focal",), marks=covers("loss.theta")),
        pytest.param({"theta": 0.7}, ("quality_focal",), marks=covers("loss.theta")),
        pytest.param(
            {"weigh_negatives": False}, ("quality_focal",), marks=covers("loss.weigh_negatives")
        ),
        pytest.param(
            {"target_score_share": 0.25},
            ("quality_focal",),
            marks=covers("loss.target_score_share"),
        ),
        pytest.param({"points": 41}, ALL, marks=covers("loss.points")),
        pytest.param(
            {"iou_resolution": "prediction"},
            ("quality_focal",),
            marks=covers("loss.iou_resolution"),
        ),
        pytest.param(
            {"iou_resolution": "prediction", "iou_cost": 60.0},
            ALL,
            marks=covers("loss.iou_resolution"),
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_every_setting_does_what_it_says_and_nothing_else(
    classification: str,
    changes: dict[str, object],
    matters_to: tuple[str, ...],
    asked: list[tuple[float, ...]],
) -> None:
    total = check(classification, replace(PLAIN, **changes))
    assert (abs(total / plain(classification) - 1) > 1e-4) == (classification in matters_to)


@pytest.mark.parametrize("classification", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_all_settings_together(
    classification: str, seed: int, asked: list[tuple[float, ...]]
) -> None:
    config = LossConfig(
        class_weight=3.0, mask_weight=7.0, dice_weight=4.0, aligned_weight=0.6, no_object_weight=0.2, class_cost="focal",
        iou_cost=1.5, gamma=1.7, theta=0.4, target_score_share=0.3, points=23, iou_resolution="prediction",
    )  # fmt: skip
    check(classification, config, seed=seed)


@pytest.mark.parametrize("classification", ALL)
@pytest.mark.parametrize(
    "of_scene",
    [
        {"counts": (0, 0)},
        {"counts": (8, 1)},
        {"slots": 0},
        {"slots": 0, "counts": (0,)},
        {"outputs": 1},
    ],
    ids=[
        "nothing-to-find",
        "more-instances-than-queries",
        "no-aligned-queries",
        "neither",
        "one-output",
    ],
)
def test_losses_of_batches_that_are_out_of_the_ordinary(
    classification: str, of_scene: dict[str, object], asked: list[tuple[float, ...]]
) -> None:
    check(classification, PLAIN, **of_scene)


@covers("loss.points", "loss.oversample", "loss.importance")
def test_mask_losses_look_where_the_configuration_says(asked: list[tuple[float, ...]]) -> None:
    config = LossConfig(points=17, oversample=5.0, importance=0.3)
    found("quality_focal", config)
    assert asked == [(17, 5.0, 0.3)]


def test_the_log_has_the_last_output() -> None:
    values = [torch.tensor([1.0, 2.0, 10.0 + i], requires_grad=True) for i in range(6)]
    summary = Losses(LossTerms(*values[:3]), LossTerms(*values[3:])).summary()
    assert {name: value.item() for name, value in summary.items()} == {
        "classification": 10.0, "mask": 11.0, "dice": 12.0,
        "aligned_classification": 13.0, "aligned_mask": 14.0, "aligned_dice": 15.0,
    }  # fmt: skip
    assert not any(value.requires_grad for value in summary.values())
