"""Losses are computed in full precision, whatever the precision of the step around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignmask.config import Classification, LossConfig
from alignmask.data import Batch
from alignmask.loss import Criterion, Losses
from alignmask.model.heads import Prediction
from tests import tiny
from tests.loss.oracle import by_name
from tests.loss.scenes import scene, with_gradients

CONFIG = LossConfig(points=40, iou_cost=1.0)


def losses(prediction: Prediction, batch: Batch, classification: Classification) -> Losses:
    torch.manual_seed(3)  # the same points
    return Criterion(tiny.model_config(classification=classification), CONFIG)(prediction, batch)


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_autocast_around_the_losses_changes_no_bit(classification: Classification) -> None:
    prediction, batch = scene(softmax=classification == "softmax")
    results = []
    for enabled in (False, True):
        copy, leaves = with_gradients(prediction)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = losses(copy, batch, classification)
            total = found.total(CONFIG)
        total.backward()
        results.append(list(by_name(found).values()) + [leaf.grad for leaf in leaves])
    for outside, inside in zip(*results, strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(outside, inside)


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_losses_of_a_prediction_in_half_precision_are_those_of_its_numbers(
    classification: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the mask IoU is taken from logits in the prediction's own precision; here both have the
    same."""
    prediction, batch = scene(softmax=classification == "softmax")
    iou_LGR = torch.rand(2, 5, 10)
    monkeypatch.setattr("alignmask.loss.criterion.mask_ious", lambda *_: iou_LGR)
    names = ("class_logits_LBRC", "mask_embedding_LBRE", "pixel_embedding_BEHW")
    half = replace(prediction, **{name: getattr(prediction, name).bfloat16() for name in names})
    single = replace(half, **{name: getattr(half, name).float() for name in names})
    found = by_name(losses(half, batch, classification))
    right = by_name(losses(single, batch, classification))
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, right[name]), name
