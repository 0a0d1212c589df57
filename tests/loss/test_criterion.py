"""The losses against plain loops over images, outputs and queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alignmask.config import LossConfig
from alignmask.loss import Criterion
from alignmask.loss.label_assignment import assign, mask_ious
from alignmask.loss.matcher import match
from tests import tiny

LOSS = LossConfig(points=64)


def loss_of(classification: str, counts: tuple[int, ...] = (3, 0, 2), **changes: object):
    model = tiny.model(classification=classification).train()
    batch = tiny.batch(counts)
    torch.manual_seed(1)
    prediction = model(batch)
    return model, batch, prediction, Criterion(model.config, replace(LOSS, **changes))(prediction, batch)


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_losses_are_finite_and_reach_every_parameter(classification: str) -> None:
    model, _, _, losses = loss_of(classification)
    losses.total(LOSS).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_classification_loss_equals_plain_loops(classification: str) -> None:
    """Eq. 2 and 3, focal loss, cross-entropy: one query at a time, from the definitions."""
    model, batch, prediction, _ = loss_of(classification)
    criterion = Criterion(model.config, LOSS)
    query_LG = match(prediction, batch, LOSS, classification)
    iou_LGR = mask_ious(prediction, batch, LOSS)
    targets = assign(query_LG, prediction, batch, iou_LGR)
    aligned_R = torch.arange(13) >= 6
    live = int(prediction.aligned.live_BA.sum())
    norms = torch.tensor([5.0, float(live)])
    found = criterion._classification(prediction, targets, aligned_R, norms)
    for output in range(4):
        sums, weights = [0.0, 0.0], [0.0, 0.0]
        for b in range(3):
            for r in range(13):
                if not targets.live_BR[b, r]:
                    continue
                logits = prediction.class_logits_LBRC[output, b, r].detach().double()
                label, iou = int(targets.label_LBR[output, b, r]), float(targets.iou_LBR[output, b, r])
                kind = int(r >= 6)
                if classification == "softmax":
                    weight = 0.1 if label < 0 else 1.0
                    sums[kind] -= weight * logits.log_softmax(0)[label if label >= 0 else 4].item()
                    weights[kind] += weight
                    continue
                s = logits.sigmoid()
                for c in range(4):
                    positive = c == label
                    if classification == "focal":
                        p, alpha = (s[c], 0.25) if positive else (1 - s[c], 0.75)
                        sums[kind] += float(-alpha * (1 - p) ** 2 * p.log())
                    else:
                        t = iou if positive else 0.0
                        bce = -(t * s[c].log() + (1 - t) * (1 - s[c]).log())
                        w = 1.0 if label >= 0 or iou < 0.5 else 4 / 3 - 4 / 3 * iou**2
                        sums[kind] += float(w * abs(t - s[c]) ** 2 * bce)
        for kind in range(2):
            norm = weights[kind] if classification == "softmax" else float(norms[kind])
            assert found[kind][output].item() == pytest.approx(sums[kind] / norm, rel=1e-4, abs=1e-7)


def test_mask_losses_equal_the_plain_form_on_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """All masks at full size, fixed points: BCE and dice row by row."""
    model = tiny.model().train()
    batch = tiny.batch((2, 1))
    prediction = model(batch)
    grid = torch.rand(64, 2)
    monkeypatch.setattr(
        "alignmask.loss.criterion.uncertain_points", lambda logits, *_: grid.expand(logits.shape[0], -1, -1)
    )
    query_LG = match(prediction, batch, LOSS, "quality_focal")
    targets = assign(query_LG, prediction, batch, mask_ious(prediction, batch, LOSS))
    live = float(prediction.aligned.live_BA.sum())
    found = Criterion(model.config, LOSS)._masks(prediction, batch, targets, torch.tensor([3.0, live]))
    for output in range(4):
        bce, dice = [0.0, 0.0], [0.0, 0.0]
        full = prediction.mask_logits(output)
        for b in range(2):
            for r in range(12):  # six object queries, 3 sets of 2 instances
                instance = int(targets.instance_LBR[output, b, r])
                if instance < 0:
                    continue
                where = (2 * grid - 1).view(1, 1, -1, 2)
                x = F.grid_sample(full[b, r][None, None], where, align_corners=False).flatten()
                t = F.grid_sample(batch.masks_GHW[instance][None, None].float(), where, align_corners=False).flatten()
                kind = int(r >= 6)
                bce[kind] += F.binary_cross_entropy(x.sigmoid(), t).item()
                p = x.sigmoid()
                dice[kind] += (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)).item()
        expected = (bce[0] / 3, dice[0] / 3, bce[1] / live, dice[1] / live)
        for values, value in zip(found, expected, strict=True):
            assert values[output].item() == pytest.approx(value, rel=1e-4)


def test_only_matched_and_aligned_rows_get_a_mask_gradient() -> None:
    model, batch, prediction, _ = loss_of("quality_focal")
    prediction.mask_embedding_LBRE.retain_grad()
    torch.manual_seed(3)
    losses = Criterion(model.config, LOSS)(prediction, batch)
    torch.manual_seed(3)
    query_LG = match(prediction, batch, LOSS, "quality_focal")
    (losses.mask_L.sum() + losses.aligned_mask_L.sum()).backward()
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
    assert not losses.mask_L.any()
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


def test_aligned_weight_scales_the_aligned_part() -> None:
    *_, losses = loss_of("quality_focal")
    without = losses.total(replace(LOSS, aligned_weight=0.0))
    half, whole = (losses.total(replace(LOSS, aligned_weight=w)) for w in (0.5, 1.0))
    torch.testing.assert_close(half - without, (whole - without) / 2)
    assert whole > without


def test_a_share_of_the_score_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target_score_share.*1\.0"):
        Criterion(tiny.model_config(), replace(LOSS, target_score_share=1.0))


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
@pytest.mark.parametrize(
    "changes",
    [{"iou_cost": 20.0}, {"weigh_negatives": False}, {"target_score_share": 0.25}],
    ids=lambda c: next(iter(c)),
)
def test_switches_change_what_they_are_about_and_nothing_else(classification: str, changes: dict[str, float]) -> None:
    plain = loss_of(classification, theta=0.0)[3].classification_L  # every mask that overlaps an instance is weighed
    switched = loss_of(classification, theta=0.0, **changes)[3]
    assert switched.total(LOSS).isfinite()
    assert torch.equal(plain, switched.classification_L) == (
        "iou_cost" not in changes and classification != "quality_focal"
    )
