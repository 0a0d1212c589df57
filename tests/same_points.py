"""In place of the op `mask_points`: the points of a row depend on nothing but its own logits, so
that it does not matter which process has it, after how many others, or what was drawn before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignmask import ops

original = ops.mask_points


def mask_points(
    logits_RHW: Tensor, masks_GHW: Tensor, index_R: Tensor, points: int, seed: int, *shares: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if not len(index_R):
        return original(logits_RHW, masks_GHW, index_R, points, 7, *shares)
    rows = [
        original(logits_RHW[r : r + 1], masks_GHW, index_R[r : r + 1], points, 7, *shares)
        for r in range(len(index_R))
    ]
    sampled_RK, target_RK, points_RK2 = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return sampled_RK, target_RK, points_RK2
