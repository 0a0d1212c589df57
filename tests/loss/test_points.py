"""Masks at points against grid_sample, and where the points of a mask loss come from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alignmask import ops
from alignmask.loss.points import sample_masks, uncertain_samples


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


def test_samples_are_those_of_the_op_and_their_seed_is_torchs() -> None:
    logits, masks = torch.randn(3, 8, 9), torch.rand(2, 32, 36) > 0.5
    index = torch.tensor([1, 0, 1])
    torch.manual_seed(4)
    found = [uncertain_samples(logits, masks, index, 50, 2.0, 0.6) for _ in range(2)]
    torch.manual_seed(4)
    again = [uncertain_samples(logits, masks, index, 50, 2.0, 0.6) for _ in range(2)]
    torch.manual_seed(4)
    for (x, t), (same_x, same_t) in zip(found, again, strict=True):
        expected = ops.mask_points(
            logits, masks, index, 50, int(torch.randint(2**63 - 1, ())), 2.0, 0.6
        )
        for a, b, c in ((x, same_x, expected[0]), (t, same_t, expected[1])):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    assert not torch.equal(found[0][0], found[1][0])


def test_the_samples_of_no_rows() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    for masks in (torch.ones(2, 5, 5) > 0, torch.ones(0, 5, 5) > 0):
        for found in uncertain_samples(torch.zeros(0, 4, 4), masks, nothing, 10, 3.0, 0.75):
            assert found.shape == (0, 10)


def test_points_of_masks_have_no_gradient() -> None:
    """Neither has a mask: what is sampled is a target."""
    masks = torch.rand(2, 5, 6) > 0.5
    points = torch.rand(3, 4, 2, requires_grad=True)
    assert not sample_masks(masks, torch.tensor([0, 1, 1]), points).requires_grad
