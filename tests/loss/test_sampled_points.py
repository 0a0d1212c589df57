"""Where points lie and what is read there, beyond one chunk of rows, too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alignmask import ops
from alignmask.loss.points import CHUNK, sample_masks
from tests.covers import covers
from tests.loss import oracle

ROWS = 2 * CHUNK["cpu"] + 3


def uncertain_points(
    logits: torch.Tensor, points: int, oversample: float, importance: float
) -> torch.Tensor:
    """Where the losses of these rows look, [R, K, 2]; what they find there is what lies there."""
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(len(logits), dtype=torch.long)
    seed = int(torch.randint(2**63 - 1, ()))
    values, _, found = ops.mask_points(logits, *nothing, points, seed, oversample, importance)
    for row in (0, len(logits) - 1):
        torch.testing.assert_close(
            values[row].double(), oracle.sample(logits[row], found[row]), rtol=1e-4, atol=1e-5
        )
    return found


def test_every_row_of_many_reads_its_own_mask_at_its_own_points() -> None:
    masks, index = torch.rand(7, 6, 9) > 0.5, torch.randint(7, (ROWS,))
    points = torch.rand(ROWS, 11, 2)
    grid = 2 * points[:, :, None] - 1
    expected = F.grid_sample(masks[index].float()[:, None], grid, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(sample_masks(masks, index, points), expected, rtol=1e-5, atol=1e-5)


def ramps(zero_at: list[float]) -> torch.Tensor:
    """Logits that grow from left to right and are 0 at so much of the width; rows of pixels are
    alike."""
    x = (torch.arange(128) + 0.5) / 128
    return torch.stack([(10 * (x - at)).expand(8, 128) for at in zero_at])


@covers("loss.oversample", "loss.importance", "loss.points")
@pytest.mark.parametrize(
    ("points", "oversample", "importance"),
    [
        (4000, 3.0, 0.75),
        (3000, 1.5, 0.6),
        (2000, 6.0, 0.9),
        (2000, 2.5, 0.25),
        (2000, 4.0, 1.0),
        (2000, 3.0, 0.0),
    ],
)
def test_the_share_importance_of_the_points_is_the_best_of_oversample_times_as_many(
    points: int, oversample: float, importance: float
) -> None:
    """Of a ramp the best candidates are a band around its zero, as wide as the share of the
    candidates that is kept."""
    found = uncertain_points(ramps([0.5]), points, oversample, importance)
    assert found.shape == (1, points, 2)
    assert len(found[0].unique(dim=0)) == points  # fresh ones are no candidates
    kept = round(importance * points)
    band = importance / oversample  # the width of the image is 1
    # The outermost pixels fade to zero outside of the image: points there are kept as well.
    chosen = found[0, :kept][((found[0, :kept] - 0.5).abs() < 0.43).all(-1)]
    if kept:
        assert len(chosen) > 0.7 * kept
        assert (chosen[:, 0] - 0.5).abs().max().item() == pytest.approx(band / 2, rel=0.15)
        assert chosen[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    fresh = found[0, kept:]
    if len(fresh):  # uniform
        assert fresh.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.06)
        assert fresh.std(0).tolist() == pytest.approx([12**-0.5, 12**-0.5], abs=0.04)


def test_every_row_of_many_has_points_by_its_own_logits() -> None:
    zero_at = [0.25 + 0.5 * (row % 7 == 0) for row in range(ROWS)]
    found = uncertain_points(ramps(zero_at), points=40, oversample=3.0, importance=0.5)
    middle = ((found[:, :20] - 0.5).abs() < 0.43).all(-1)
    away = (found[:, :20, 0] - torch.tensor(zero_at)[:, None]).abs() * middle
    assert middle.sum() > 10 * ROWS
    assert away.max() < 0.25  # 20 of 120 candidates, all of them rather near
    # No two rows share their candidates or their fresh points.
    for x_RK in (found[:, :20, 0], found[:, 20:, 0]):
        assert len(x_RK.sort(dim=1).values.unique(dim=0)) == ROWS


def test_points_depend_on_the_size_of_logits_not_their_sign() -> None:
    """A mask that is inside everywhere has its uncertain points where it is least so."""
    low_in_the_middle = ramps([0.5]).abs() + 1
    for logits in (low_in_the_middle, -low_in_the_middle):
        found = uncertain_points(logits, 400, 4.0, 0.5)[0, :200]
        chosen = found[((found - 0.5).abs() < 0.43).all(-1)]
        assert len(chosen) > 100
        assert (chosen[:, 0] - 0.5).abs().max() < 0.1
