"""Point sampling and masked average pooling (Eq. 1 up to GAP).

Both samplings are linear, so the points of a set are splatted into a sparse map of feature weights
per instance, and one matrix product contracts it with the features: [K, C] is never materialised.

Shapes: B images, C channels, H x W features, G instances of the batch, T point sets, K points in a
set, M instances of one image.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision


def check(features: Tensor, masks: Tensor, owner: Tensor, points: Tensor, normalize: str) -> None:
    """Raise TypeError or ValueError unless dtypes and sizes obey the contract of
    `alignmask.ops.masked_point_pool`."""
    op = "masked_point_pool"
    _check.bind(
        op,
        features=(features, "BCHW", _check.FLOATS),
        points=(points, "BTK2", _check.FLOATS),
        owner=(owner, "G", _check.INTS),
        masks=(masks, "Ghw", _check.MASKS),
    )
    allowed = {features.dtype, _check.compute_dtype(features.dtype)}
    if points.dtype not in allowed:
        raise TypeError(
            f"{op}: points is {points.dtype}, but with features {features.dtype} it must be one of "
            f"{allowed}"
        )
    check_normalize(normalize)


def check_normalize(normalize: str) -> None:
    """Raise ValueError for an unknown way to normalise."""
    if normalize not in ("mask", "points"):
        raise ValueError(
            f'masked_point_pool: normalize must be "mask" or "points", got {normalize!r}'
        )


@in_full_precision
def masked_point_pool(
    features_BCHW: Tensor,
    masks_GHW: Tensor,
    owner_G: Tensor,
    points_BTK2: Tensor,
    normalize: Literal["mask", "points"] = "mask",
) -> tuple[Tensor, Tensor]:
    """See `alignmask.ops.masked_point_pool`. A NaN in an image's features reaches all instances of
    that image here."""
    check(features_BCHW, masks_GHW, owner_G, points_BTK2, normalize)
    _check.in_range("masked_point_pool", "owner", owner_G, 0, len(features_BCHW))
    B, C, H, W = features_BCHW.shape
    _, T, K, _ = points_BTK2.shape
    G = len(masks_GHW)
    dtype = _check.compute_dtype(features_BCHW.dtype)
    pooled_GTC = (
        features_BCHW.new_zeros(G, T, C, dtype=dtype) + 0 * features_BCHW.sum()
    )  # depends on features even if G = 0
    weight_GT = features_BCHW.new_zeros(G, T, dtype=dtype)
    owners = owner_G.tolist()
    for image in sorted(set(owners)):
        mine_M = torch.tensor(
            [g for g, owner in enumerate(owners) if owner == image], device=masks_GHW.device
        )
        masks_MHW = masks_GHW.index_select(0, mine_M)
        flat_SC = features_BCHW[image].to(dtype).reshape(C, H * W).T
        for t in range(T):
            points_K2 = points_BTK2[image, t].to(dtype)
            hit_MK = sample_masks(masks_MHW, points_K2)
            splat_MS = hit_MK.new_zeros(len(mine_M), H * W)
            for index_K, tap_K in bilinear_taps(points_K2, H, W):
                splat_MS.index_add_(1, index_K, hit_MK * tap_K)
            hit_M = hit_MK.sum(1)
            denominator_M = hit_M if normalize == "mask" else torch.full_like(hit_M, K)
            mean_MC = (splat_MS @ flat_SC) / torch.where(denominator_M > 0, denominator_M, 1)[
                :, None
            ]
            pooled_GTC = pooled_GTC.index_put(
                (mine_M, torch.tensor(t, device=mine_M.device)), mean_MC
            )
            weight_GT[mine_M, t] = hit_M
    return pooled_GTC.to(features_BCHW.dtype), weight_GT


def bilinear_taps(points_K2: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """The four taps (flat pixel index, weight) of normalised points (x, y); a tap outside has index
    0 and weight 0.

    As `grid_sample(2 * points - 1, align_corners=False, padding_mode="zeros")`. NaN points weigh
    NaN.
    """
    if height == 0 or width == 0:
        return []
    size = points_K2.new_tensor([width, height])
    pixel_K2 = points_K2.clamp(-1, 2) * size - 0.5
    low_K2 = pixel_K2.floor()
    high_part_K2 = pixel_K2 - low_K2
    taps = []
    for dy in (0, 1):
        for dx in (0, 1):
            corner_K2 = low_K2 + low_K2.new_tensor([dx, dy])
            part_K2 = torch.stack([high_part_K2[:, 0] if dx else 1 - high_part_K2[:, 0],
                                   high_part_K2[:, 1] if dy else 1 - high_part_K2[:, 1]], dim=1)  # fmt: skip
            inside_K = ((corner_K2 >= 0) & (corner_K2 < size)).all(dim=1)
            x_K, y_K = torch.where(inside_K[:, None], corner_K2, 0).long().unbind(1)
            weight_K = part_K2.prod(dim=1)
            taps.append((y_K * width + x_K, torch.where(inside_K | weight_K.isnan(), weight_K, 0)))
    return taps


def sample_masks(masks_MHW: Tensor, points_K2: Tensor) -> Tensor:
    """Bilinear samples of masks (any non-zero byte counts as 1) at normalised points, [M, K]."""
    M, H, W = masks_MHW.shape
    flat_MS = masks_MHW.reshape(M, H * W) != 0
    hit_MK = points_K2.new_zeros(M, len(points_K2))
    for index_K, weight_K in bilinear_taps(points_K2, H, W):
        hit_MK += flat_MS[:, index_K] * weight_K
    return hit_MK
