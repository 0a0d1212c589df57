"""What the losses reach, and what their switches change. Their values: test_losses.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignmask.config import LossConfig
from alignmask.loss import Criterion
from alignmask.loss.matcher import match
from tests import tiny

LOSS = LossConfig(points=64)


def loss_of(classification: str, counts: tuple[int, ...] = (3, 0, 2), **changes: object):
    model = tiny.model(classification=classification).train()
    batch = tiny.batch(counts)
    torch.manual_seed(1)
    prediction = model(batch)
    return (
        model,
        batch,
        prediction,
        Criterion(model.config, replace(LOSS, **changes))(prediction, batch),
    )


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_losses_are_finite_and_reach_every_parameter(classification: str) -> None:
    model, _, _, losses = loss_of(classification)
    losses.total(LOSS).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_only_matched_and_aligned_rows_get_a_mask_gradient() -> None:
    model, batch, prediction, _ = loss_of("quality_focal")
    prediction.mask_embedding_LBRE.retain_grad()
    torch.manual_seed(3)
    losses = Criterion(model.config, LOSS)(prediction, batch)
    torch.manual_seed(3)
    query_LG = match(prediction, batch, LOSS, "quality_focal")
    (losses.objects.mask_L.sum() + losses.aligned.mask_L.sum()).backward()
    touched = prediction.mask_embedding_LBRE.grad.abs().sum(3) > 0
    expected = torch.zeros_like(touched)
    for output in range(4):
        for g in range(5):
            expected[output, batch.owner_G[g], query_LG[output, g]] = True
    expected[:, :, 6:] = prediction.aligned.live_BA
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_images_without_instances_train(classification: str) -> None:
    model, _, _, losses = loss_of(classification, counts=(0, 0))
    total = losses.total(LOSS)
    total.backward()
    assert total > 0
    assert not losses.objects.mask_L.any()
    assert model.query_decoder.heads.classify.weight.grad.any()


def test_the_order_of_instances_does_not_matter() -> None:
    """Classification loss depends on no random points but the matcher's, which are given."""
    model = tiny.model(aligned_queries=None).train()
    batch = tiny.batch((3,))
    order = torch.tensor([2, 0, 1])
    shuffled = replace(batch, masks_GHW=batch.masks_GHW[order], labels_G=batch.labels_G[order])
    prediction = model(batch)
    points = torch.rand(1, 64, 2)
    first = match(prediction, batch, LOSS, "quality_focal", points)
    second = match(prediction, shuffled, LOSS, "quality_focal", points)
    assert torch.equal(first[:, order], second)


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_of_the_score_outside_of_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"target_score_share.*{share}"):
        Criterion(tiny.model_config(), replace(LOSS, target_score_share=share))
