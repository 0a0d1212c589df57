"""Autocast changes no op's arithmetic: kernels and references compute in float32 inside it, too."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignmask import ops
from tests.ops import oracles
from tests.ops.compare import array

B, G, C = 2, 3, 16


def _arguments() -> dict[str, tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    value, locations, weights = random(B, 20, 2, 8), random(B, 5, 2, 1, 4, 2), random(B, 5, 2, 1, 4)
    # 6 · 12544 is more than half precision holds, and the sums exist before the division by the
    # mask's weight.
    features, masks = 5.5 + random(B, C, 8, 8), random(G, 32, 32) > 0.1
    owner, points = torch.tensor([0, 0, 1]), random(B, 1, 12544, 2)
    return {
        "ms_deform_attn": (value, [(4, 5)], locations, weights),
        "ms_deform_attn_from_offsets": (
            value,
            [(4, 5)],
            locations[:, :, 0, :, 0],
            3 * locations,
            9 * weights,
        ),
        "masked_point_pool": (features, masks, owner, points, "mask"),
        "mask_iou": (random(B, 4, 80, 80) - 0.5, random(G, 80, 80) > 0.3, owner),
        "mask_points": (9 * random(G, 40, 40), masks, torch.tensor([2, 0, 1]), 500, 3, 3.0, 0.75),
        "quality_focal_loss": (random(80, 80) - 0.5, torch.arange(80), random(80), 2.0, 0.5),
    }


def _first(results: Any) -> Any:
    return results[0] if isinstance(results, tuple) else results


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", list(_arguments()))
def test_autocast_changes_nothing(op: str, dtype: torch.dtype, reference: bool) -> None:
    """Not a bit; and what comes out is what loops in float64 say, within float32's rounding."""
    arguments = _arguments()[op]
    with ops.use_reference() if reference else nullcontext():
        plain = _first(getattr(ops, op)(*arguments))
        with torch.autocast("cpu", dtype):
            inside = _first(getattr(ops, op)(*arguments))
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)
    expected = getattr(oracles, op)(*(array(a) if isinstance(a, Tensor) else a for a in arguments))
    # mask_points looks for logits near 0, which are differences of larger ones.
    atol = 2e-5 if op == "mask_points" else 0
    np.testing.assert_allclose(inside.numpy(), _first(expected), rtol=2e-5, atol=atol)


def test_references_take_keywords() -> None:
    """Called directly, too, they ignore autocast."""
    features, masks, owner, points, _ = _arguments()["masked_point_pool"]
    with torch.autocast("cpu", torch.float16):
        pooled, _ = ops.reference.masked_point_pool(
            features_BCHW=features, masks_GHW=masks, owner_G=owner, points_BTK2=points
        )
    expected, _, _ = oracles.masked_point_pool(
        *map(array, (features, masks, owner, points)), "mask"
    )
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=2e-5)
