"""Deformable attention by gathers against the op."""

from __future__ import annotations

import math

import pytest
import torch

from alignmask import ops
from alignmask.exporting.sampling import (
    GatheringAttention,
    attend_by_gathers,
    gathering_attention,
)
from alignmask.model.pixel_decoder import MSDeformAttn
from tests import tiny


@pytest.mark.parametrize("shapes", [[(3, 5)], [(1, 1), (2, 7)], [(4, 3), (1, 6), (5, 1)]])
@pytest.mark.parametrize("spread", [0.3, 3.0, 1e6])
def test_it_is_the_op(shapes: list[tuple[int, int]], spread: float) -> None:
    """Points inside, on the border, outside and very far outside of every level."""
    B, N, D, Q, L, P = 2, 3, 4, 11, len(shapes), 5
    tokens = sum(h * w for h, w in shapes)
    offsets = torch.randn(B, Q, N, L, P, 2) * spread
    offsets[:, :2] = offsets[:, :2].round()  # exactly on tokens, where a share is 0
    offsets[0, 3, 0, 0, 0] = math.inf
    reference = torch.rand(B, Q, L, 2)
    reference[:, 0] = 0.5 / torch.tensor([(w, h) for h, w in shapes])
    given = (torch.randn(B, tokens, N, D), shapes, reference, offsets, torch.randn(B, Q, N, L, P))
    found = attend_by_gathers(*given)
    torch.testing.assert_close(found, ops.ms_deform_attn_from_offsets(*given), rtol=0, atol=1e-5)
    if spread < 1e6:
        assert found.abs().max() > 0.1


def test_a_model_is_as_before_afterwards() -> None:
    model = tiny.model()
    with gathering_attention(model):
        assert any(type(module) is GatheringAttention for module in model.modules())
    assert any(type(module) is MSDeformAttn for module in model.modules())
    assert not any(type(module) is GatheringAttention for module in model.modules())
