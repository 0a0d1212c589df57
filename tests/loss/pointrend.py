"""PointRend's sampling of points in training as it is usually composed (Detectron2, Mask2Former):
the peer of `alignmask.ops.mask_points`, with torch's generator in place of its own.

R rows (one mask each), K points, M candidates, G instances, H x W pixels. Points are (x, y) in [0,
1]; sampling is bilinear and zero outside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128
"""Number of rows to process at once: it bounds the memory of their candidates."""


def sample_maps(maps_RHW: Tensor, points_RK2: Tensor) -> Tensor:
    """-> [R, K]: every map at its own points."""
    grid = 2 * points_RK2[:, :, None] - 1
    return F.grid_sample(maps_RHW[:, None], grid, align_corners=False)[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(
    logits_RHW: Tensor, points: int, oversample: float, importance: float
) -> Tensor:
    """-> [R, points, 2]. `oversample * points` random candidates are drawn. The `importance *
    points` with logits nearest to 0 are kept. The others are new random points."""
    if not len(logits_RHW):
        return logits_RHW.new_zeros(0, points, 2)
    parts = [
        _uncertain(some_RHW, points, oversample, importance) for some_RHW in logits_RHW.split(CHUNK)
    ]
    return torch.cat(parts)


def _uncertain(logits_RHW: Tensor, points: int, oversample: float, importance: float) -> Tensor:
    rows, kept = logits_RHW.shape[0], int(importance * points)
    candidates = torch.rand(rows, int(points * oversample), 2, device=logits_RHW.device)
    distance = sample_maps(logits_RHW, candidates).abs()
    nearest = distance.topk(kept, dim=1, largest=False, sorted=False).indices
    fresh = torch.rand(rows, points - kept, 2, device=logits_RHW.device)
    return torch.cat((candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), fresh), dim=1)


def samples_at(
    points_RK2: Tensor, logits_RHW: Tensor, masks_GHW: Tensor, index_R: Tensor
) -> tuple[Tensor, Tensor]:
    """-> [R, K] each: logits and targets at given points."""
    from alignmask.loss.points import sample_masks  # not where the ops alone are installed

    return sample_maps(logits_RHW, points_RK2), sample_masks(masks_GHW, index_R, points_RK2)


def composed(
    logits_RHW: Tensor,
    masks_GHW: Tensor,
    index_R: Tensor,
    points: int,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `alignmask.ops.mask_points`."""
    points_RK2 = uncertain_points(logits_RHW, points, oversample, importance)
    return *samples_at(points_RK2, logits_RHW, masks_GHW, index_R), points_RK2
