"""Point sampling against grid_sample, and the choice of uncertain points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alignmask.loss.points import sample_maps, sample_masks, uncertain_points


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 7),
    st.integers(0, 10_000),
)
def test_masks_are_sampled_as_grid_sample_samples_floats(
    instances: int, height: int, width: int, rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(instances, height, width, generator=generator) > 0.5
    index = torch.randint(0, instances, (rows,), generator=generator)
    points = torch.rand(rows, 20, 2, generator=generator) * 1.4 - 0.2  # outside, too
    expected = F.grid_sample(
        masks[index].float()[:, None], 2 * points[:, :, None] - 1, align_corners=False
    )[:, 0, :, 0]
    torch.testing.assert_close(sample_masks(masks, index, points), expected, rtol=1e-5, atol=1e-5)


def test_uncertain_points_lie_where_the_logit_is_near_zero() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-8, 8, 64).expand(3, 64, 64).contiguous()  # zero at x = 0.5
    points = uncertain_points(ramp, points=400, oversample=3.0, importance=0.75)
    assert points.shape == (3, 400, 2)
    assert ((points >= 0) & (points <= 1)).all()
    chosen, fresh = points[:, :300], points[:, 300:]
    # 300 of 1200 uniform candidates: the middle quarter (and the border, where sampling fades to
    # zero).
    inner = ((chosen - 0.5).abs() < 0.5 - 1 / 128).all(-1)
    assert inner.sum() > 850
    assert ((chosen[inner][:, 0] - 0.5).abs() < 0.16).all()
    assert (fresh[..., 0] - 0.5).abs().max() > 0.4


def test_uncertain_points_of_no_rows() -> None:
    assert uncertain_points(torch.zeros(0, 4, 4), 10, 3.0, 0.75).shape == (0, 10, 2)


def test_uncertain_points_of_many_rows_are_searched_in_pieces() -> None:
    assert uncertain_points(torch.randn(300, 4, 4), 8, 3.0, 0.75).shape == (300, 8, 2)


def test_maps_are_sampled_with_gradient() -> None:
    maps = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    points = torch.rand(2, 7, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: sample_maps(m, points), (maps,))


def test_points_of_masks_have_no_gradient() -> None:
    """Neither has a mask: what is sampled is a target."""
    masks = torch.rand(2, 5, 6) > 0.5
    points = torch.rand(3, 4, 2, requires_grad=True)
    assert not sample_masks(masks, torch.tensor([0, 1, 1]), points).requires_grad
