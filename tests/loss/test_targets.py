"""What queries are trained towards: mask IoUs at every output, shrunken masks, and which way the
class scores are drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from alignmask import ops
from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss import Criterion
from alignmask.loss.label_assignment import SHRUNK_AT_A_TIME, mask_ious, shrink
from alignmask.model.heads import Prediction
from tests import tiny
from tests.covers import covers
from tests.loss import oracle
from tests.loss.scenes import scene, with_gradients


@covers("loss.iou_resolution")
@pytest.mark.parametrize("resolution", ["image", "prediction"])
def test_mask_ious_of_every_output_are_its_own(resolution: str) -> None:
    prediction, batch = scene(outputs=3)
    config = LossConfig(iou_resolution=resolution)
    found = mask_ious(prediction, batch, config)
    masks = batch.masks_GHW
    if resolution == "prediction":
        masks = torch.stack([oracle.shrink(mask, (8, 16)) for mask in masks])
    for output in range(3):
        of_output = ops.mask_iou(prediction.mask_logits(output), masks, batch.owner_G)
        assert torch.equal(found[output], of_output)
        by_hand = [
            [oracle.iou(prediction, batch, config, output, r, g) for r in range(10)]
            for g in range(5)
        ]
        torch.testing.assert_close(of_output, torch.tensor(by_hand))
    assert (found[0] - found[2]).abs().max() > 0.1


def blobs(count: int, share: float) -> torch.Tensor:
    """Random masks whose cells of 4 x 4 pixels are covered by anything from 0 to 16 pixels; the
    larger the share, the more."""
    coverage = torch.rand(count, 5, 7) ** (1 / share)
    return torch.rand(count, 20, 28) < coverage.repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0, 3.0])
def test_random_blobs_shrink_to_the_cells_that_are_half_covered(share: float) -> None:
    masks = blobs(2 * SHRUNK_AT_A_TIME + 5, share)  # more than are looked at together
    masks[3] = False
    found = shrink(masks, (5, 7))
    assert found.dtype == torch.bool
    assert torch.equal(found, torch.stack([oracle.shrink(mask, (5, 7)) for mask in masks]))
    assert not found[3].any()


@pytest.mark.parametrize("covered", range(1, 17))
def test_a_best_cell_of_any_coverage_is_kept_with_all_that_are_half_covered(covered: int) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, 4:].view(4, 4)[torch.arange(16).view(4, 4) < covered] = True
    mask[4:, :4][torch.arange(16).view(4, 4) < 8] = True  # exactly half
    mask[:4, :4][torch.arange(16).view(4, 4) < 7] = True  # not quite
    assert shrink(mask[None], (2, 2))[0].tolist() == [[False, covered >= 8], [True, False]]


def one_instance(overlap: float, score: float, negative: bool = False) -> tuple[Prediction, Batch]:
    """Object query and aligned query with masks that cover so much of the instance and nothing
    else, and a padding row.

    negative: another object query, the first row, has the whole instance.
    """
    prediction, batch = scene((1,), outputs=2, queries=1 + negative, slots=2)
    batch.masks_GHW.zero_()
    batch.masks_GHW[0, 8:16, :40] = True
    pixels_EHW = torch.full((3, 8, 16), -1.0)
    pixels_EHW[0, 2:4, : round(10 * overlap)] = 1.0
    pixels_EHW[1, 2:4, :10] = 1.0
    embedding_LBRE = torch.zeros_like(prediction.mask_embedding_LBRE)
    embedding_LBRE[:, :, negative:, 0] = 1.0
    embedding_LBRE[:, :, :negative, 1] = 1.0
    logits_LBRC = torch.full_like(
        prediction.class_logits_LBRC, float(torch.logit(torch.tensor(score)))
    )
    return replace(
        prediction,
        class_logits_LBRC=logits_LBRC,
        mask_embedding_LBRE=embedding_LBRE,
        pixel_embedding_BEHW=pixels_EHW[None],
    ), batch


def pull(overlap: float, score: float, config: LossConfig, negative: bool = False) -> torch.Tensor:
    """-> [outputs, rows, classes]: how strongly gradient descent raises each class logit."""
    prediction, batch = one_instance(overlap, score, negative)
    prediction, (logits_LBRC, *_) = with_gradients(prediction)
    losses = Criterion(tiny.model_config(), config)(prediction, batch)
    (losses.objects.classification_L + losses.aligned.classification_L).sum().backward()
    assert logits_LBRC.grad is not None
    return -logits_LBRC.grad[:, 0]


def test_a_better_mask_draws_the_score_of_the_right_class_higher() -> None:
    """t is the IoU (Eq. 3): below it the score is raised, above it lowered, and the more, the
    farther it is. Other classes are lowered whatever the mask."""
    config = LossConfig(points=50, iou_resolution="prediction")
    overlaps = [0.0, 0.2, 0.5, 0.8, 1.0]
    pulls = [pull(overlap, 0.3, config) for overlap in overlaps]
    _, batch = one_instance(1.0, 0.3)
    right = int(batch.labels_G[0])
    for output in range(2):
        for row in (0, 1):  # object query, aligned query
            of_right = [float(p[output, row, right]) for p in pulls]
            assert of_right == sorted(of_right)
            assert [value > 0 for value in of_right] == [overlap > 0.3 for overlap in overlaps]
            assert len(set(of_right)) == len(of_right)
            for p in pulls:
                wrong = [float(p[output, row, c]) for c in range(4) if c != right]
                assert max(wrong) < 0
                assert wrong == pytest.approx([-pulls_of_a_negative(0.3)] * 3, rel=1e-4)
        assert all(not p[output, 2].any() for p in pulls)  # padding


def pulls_of_a_negative(score: float) -> float:
    """d/dx of s^2 BCE(s, 0), s = sigmoid(x)."""
    x = torch.logit(torch.tensor(score, dtype=torch.float64)).requires_grad_()
    (x.sigmoid() ** 2 * -(1 - x.sigmoid()).log()).backward()
    return float(x.grad)


@covers("loss.theta", "loss.weigh_negatives", "loss.gamma")
@pytest.mark.parametrize(("theta", "gamma"), [(0.5, 2.0), (0.3, 1.5), (0.0, 3.0)])
def test_a_better_mask_of_a_negative_is_held_down_less(theta: float, gamma: float) -> None:
    """Eq. 2: by w_neg, which is 1 up to theta and falls to 0 at an IoU of 1."""
    config = LossConfig(
        points=50, iou_resolution="prediction", theta=theta, gamma=gamma, iou_cost=1e3
    )  # who is matched
    plain = replace(config, weigh_negatives=False)
    for overlap in (0.1, 0.2, 0.4, 0.6, 0.9):
        held, fully = (pull(overlap, 0.3, c, negative=True)[:, 1] for c in (config, plain))
        right = 1.0 if overlap < theta else (1 - overlap**gamma) / (1 - theta**gamma)
        assert (fully < 0).all()
        torch.testing.assert_close(held / fully, torch.full((2, 4), right))
