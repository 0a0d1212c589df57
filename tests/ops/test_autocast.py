"""Autocast changes no op's arithmetic: kernels and references compute in float32 inside it, too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from alignmask import ops

B, G, C = 2, 3, 16


def _calls() -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    value, locations, weights = random(B, 20, 2, 8), random(B, 5, 2, 1, 4, 2), random(B, 5, 2, 1, 4)
    # 6.0 · 12544 points is more than half precision holds, before the division by the mask's weight.
    features, masks = torch.full((B, C, 8, 8), 6.0), torch.ones(G, 32, 32, dtype=torch.bool)
    owner, points = torch.tensor([0, 0, 1]), random(B, 1, 12544, 2)
    logits, target = random(B, 4, 80, 80) - 0.5, random(G, 80, 80) > 0.3
    return {
        "ms_deform_attn": lambda: ops.ms_deform_attn(value, [(4, 5)], locations, weights),
        "ms_deform_attn_from_offsets": lambda: ops.ms_deform_attn_from_offsets(
            value, [(4, 5)], locations[:, :, 0, :, 0], 3 * locations, 9 * weights
        ),
        "masked_point_pool": lambda: ops.masked_point_pool(features, masks, owner, points)[0],
        "mask_iou": lambda: ops.mask_iou(logits, target, owner),
        "quality_focal_loss": lambda: ops.quality_focal_loss(logits[0, 0], torch.arange(80), random(80)),
    }


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", list(_calls()))
def test_autocast_changes_nothing(op: str, dtype: torch.dtype, reference: bool) -> None:
    with ops.use_reference() if reference else nullcontext():
        plain = _calls()[op]()
        with torch.autocast("cpu", dtype):
            inside = _calls()[op]()
    assert plain.isfinite().all()
    assert torch.equal(plain, inside)


def test_references_take_keywords() -> None:
    """Called directly, too, they ignore autocast."""
    points = torch.rand(1, 1, 12544, 2)
    features, masks = torch.full((1, C, 8, 8), 6.0), torch.ones(1, 32, 32, dtype=torch.bool)
    with torch.autocast("cpu", torch.float16):
        pooled, _ = ops.reference.masked_point_pool(
            features_BCHW=features, masks_GHW=masks, owner_G=torch.zeros(1, dtype=torch.long), points_BTK2=points
        )
    assert pooled.isfinite().all()
