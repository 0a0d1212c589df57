"""Point sampling: mask losses and matching costs are computed at a few points instead of all pixels
(PointRend, Mask2Former).

R rows (one mask each), K points, G instances, H x W pixels. Points are (x, y) in [0, 1]; sampling
is bilinear and zero outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignmask import ops

CHUNK = {"cpu": 128, "cuda": 1024}
"""Number of rows to process at once, by device. It bounds the memory of temporary results; on a GPU
it is larger, because more chunks mean more kernel launches."""


def _chunk(tensor: Tensor) -> int:
    return CHUNK.get(tensor.device.type, CHUNK["cuda"])


@torch.no_grad()
def sample_masks(masks_GHW: Tensor, index_R: Tensor, points_RK2: Tensor) -> Tensor:
    """-> [R, K]: mask `index_R[r]` at the points of row r. The boolean masks are never turned into
    floats."""
    chunks = zip(index_R.split(_chunk(index_R)), points_RK2.split(_chunk(index_R)), strict=True)
    return torch.cat([_sample_masks(masks_GHW, index, points) for index, points in chunks])


def _sample_masks(masks_GHW: Tensor, index_R: Tensor, points_RK2: Tensor) -> Tensor:
    height, width = masks_GHW.shape[1:]
    flat = masks_GHW.reshape(-1)
    x, y = points_RK2[..., 0] * width - 0.5, points_RK2[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, bottom_share = x - left, y - top
    sampled = torch.zeros_like(x)
    for dy, share_y in ((0, 1 - bottom_share), (1, bottom_share)):
        row = top.long() + dy
        for dx, share_x in ((0, 1 - right_share), (1, right_share)):
            column = left.long() + dx
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            at = (index_R[:, None] * height + row.clamp(0, height - 1)) * width + column.clamp(
                0, width - 1
            )
            sampled += flat[at] * inside * (share_x * share_y)
    return sampled


def uncertain_samples(
    logits_RHW: Tensor,
    masks_GHW: Tensor,
    index_R: Tensor,
    points: int,
    oversample: float,
    importance: float,
) -> tuple[Tensor, Tensor]:
    """-> [R, points] each: logits and mask `index_R[r]` of every row, at points as PointRend draws
    them in training. `oversample * points` random candidates are drawn. The `importance * points`
    with logits nearest to 0 are kept. The others are new random points.

    One number of torch's generator is the seed of all of them: of the CPU's, so that nothing waits
    for a GPU.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    logits_RK, target_RK, _ = ops.mask_points(
        logits_RHW, masks_GHW, index_R, points, seed, oversample, importance
    )
    return logits_RK, target_RK
