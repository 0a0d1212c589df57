"""Label assignment against plain loops (Eq. 2 and 3's inputs)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignmask.config import LossConfig
from alignmask.loss.label_assignment import (
    Positives,
    Targets,
    assign,
    mask_ious,
    quality,
    shrink,
)
from alignmask.model.aligned_queries import AlignedQueries
from tests import tiny
from tests.loss.test_matcher import prediction_for


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_assignment_equals_plain_loops(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = tiny.batch(tuple(counts), seed=seed)
    outputs, rows, queries = 2, 8, 5
    instances = sum(counts)
    instance_BA = torch.full((len(counts), 3), -1)
    for b in range(len(counts)):
        own = (batch.owner_G == b).nonzero()[:, 0]
        for slot in range(min(len(own), 2)):
            instance_BA[b, slot] = own[slot]
    aligned = AlignedQueries(torch.zeros(len(counts), 3, 8), instance_BA, instance_BA.clamp(max=0))
    prediction = replace(prediction_for(batch, queries=rows), queries=queries, aligned=aligned)
    iou = torch.rand(outputs, instances, rows, generator=generator)
    query = torch.stack(
        [
            torch.cat([torch.randperm(queries, generator=generator)[:c] for c in counts])
            for _ in range(outputs)
        ]
    ).long()
    if instances:
        query[0, 0] = -1  # an instance that found no query

    targets = assign(query, instance_BA, prediction, batch, iou)
    for output in range(outputs):
        for b in range(len(counts)):
            mine = [g for g in range(instances) if batch.owner_G[g] == b]
            for r in range(rows):
                instance = -1
                if r < queries:
                    instance = next((g for g in mine if query[output, g] == r), -1)
                else:
                    instance = int(instance_BA[b, r - queries])
                live = r < queries or instance >= 0
                assert targets.live_BR[b, r] == live
                assert targets.instance_LBR[output, b, r] == instance
                assert targets.label_LBR[output, b, r] == (
                    batch.labels_G[instance] if instance >= 0 else -1
                )
                best = max((iou[output, g, r].item() for g in mine), default=0.0)
                expected = iou[output, instance, r].item() if instance >= 0 else best
                assert targets.iou_LBR is not None
                assert targets.iou_LBR[output, b, r].item() == expected


def test_mask_ious_at_both_resolutions() -> None:
    """A prediction that equals the instance has IoU 1, at the prediction's size and at the
    image's."""
    batch = tiny.batch((1,), size=(64, 96))
    batch.masks_GHW.zero_()
    batch.masks_GHW[0, 16:48, 8:40] = True  # on the stride-4 grid
    logits = torch.where(shrink(batch.masks_GHW, (16, 24)), 1.0, -1.0)
    prediction = replace(prediction_for(batch, queries=1, outputs=1), queries=1)
    prediction.pixel_embedding_BEHW.zero_()
    prediction.pixel_embedding_BEHW[0, 0] = logits[0]
    prediction.mask_embedding_LBRE.zero_()
    prediction.mask_embedding_LBRE[..., 0] = 1
    assert mask_ious(prediction, batch, LossConfig(iou_resolution="prediction")).item() == 1.0
    at_image = mask_ious(prediction, batch, LossConfig(iou_resolution="image")).item()
    assert 0.95 < at_image < 1.0  # bilinear upsampling rounds the corners


def test_shrinking_keeps_tiny_objects_and_halves_others() -> None:
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[0, 4:8, 4:12] = True  # two whole cells
    masks[1, 5, 5] = True  # one pixel of a cell
    masks[2, 0:4, 0:2] = True  # exactly half a cell
    small = shrink(masks, (4, 4))
    assert small[0].nonzero().tolist() == [[1, 1], [1, 2]]
    assert small[1].nonzero().tolist() == [[1, 1]]
    assert small[2].nonzero().tolist() == [[0, 0]]
    assert not small[3].any()
    assert shrink(masks[:0], (4, 4)).shape == (0, 4, 4)


def test_of_equally_covered_cells_a_tiny_object_keeps_one() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3:5, 3:5] = True  # one pixel in each of four cells
    assert shrink(mask, (2, 2)).sum() == 1


def test_quality_is_the_iou_unless_a_switch_says_otherwise() -> None:
    label, iou = torch.tensor([[[1, -1, 0]]]), torch.tensor([[[0.64, 0.8, 0.36]]])
    no_row = Positives(*torch.empty(4, 0, dtype=torch.long), counts=[0])
    targets = Targets(label, label, torch.ones(1, 3, dtype=torch.bool), iou, no_row)
    logits = torch.full((1, 1, 3, 2), -9.0)
    logits[0, 0, 0, 1], logits[0, 0, 2, 0] = 0.0, torch.logit(torch.tensor(0.36))
    assert quality(logits, targets, LossConfig()) is iou
    plain = quality(logits, targets, LossConfig(weigh_negatives=False))
    assert plain[0, 0].tolist() == pytest.approx([0.64, 0.0, 0.36])
    mixed = quality(logits, targets, LossConfig(target_score_share=0.25))
    assert mixed[0, 0].tolist() == pytest.approx(
        [0.5**0.25 * 0.64**0.75, 0.8, 0.36]
    )  # a score that equals the IoU stays
