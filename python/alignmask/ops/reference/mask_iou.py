"""IoU of predicted masks with the target masks of their image.

Shapes: B images, Q predictions per image, h x w predictions, G targets of the batch, H x W targets,
M targets of one image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision

_CHUNK_QUERIES = 8  # bounds the upsampled logits
_CHUNK_PIXELS = 1 << 22  # float32 counts exactly up to 2^24


def check(predictions: Tensor, targets: Tensor, owner: Tensor) -> None:
    """Raise TypeError or ValueError unless dtypes and sizes obey the contract of
    `alignmask.ops.mask_iou`."""
    op = "mask_iou"
    sizes = _check.bind(
        op,
        predictions=(predictions, "BQhw", _check.FLOATS),
        owner=(owner, "G", _check.INTS),
        targets=(targets, "GHW", _check.MASKS),
    )
    h, w, H, W = (sizes[letter] for letter in "hwHW")
    if (H, W) != (h, w) and (h == 0 or w == 0 or H % h or W % w or H // h != W // w or H == 0):
        raise ValueError(
            f"{op}: targets must have the predictions' size ({h}, {w}) or the same integer "
            "multiple of both sides, "
            f"got ({H}, {W})"
        )


@in_full_precision
def mask_iou(
    predictions_BQHW: Tensor, targets_GHW: Tensor, owner_G: Tensor, threshold: float = 0.0
) -> Tensor:
    """See `alignmask.ops.mask_iou`."""
    check(predictions_BQHW, targets_GHW, owner_G)
    _check.in_range("mask_iou", "owner", owner_G, 0, len(predictions_BQHW))
    predictions_BQHW = predictions_BQHW.detach()
    Q = predictions_BQHW.shape[1]
    G, H, W = targets_GHW.shape
    dtype = _check.compute_dtype(predictions_BQHW.dtype)
    iou_GQ = predictions_BQHW.new_zeros(G, Q, dtype=dtype)
    owners = owner_G.tolist()
    for image in sorted(set(owners)):
        mine_M = torch.tensor(
            [g for g, owner in enumerate(owners) if owner == image], device=owner_G.device
        )
        targets_MS = targets_GHW.index_select(0, mine_M).flatten(1) != 0
        area_M1 = targets_MS.sum(1, keepdim=True, dtype=torch.float64)
        # Upsampled logits are large: few at a time.
        step = max(Q, 1) if predictions_BQHW.shape[2:] == (H, W) else _CHUNK_QUERIES
        for first in range(0, Q, step):
            logits_QHW = predictions_BQHW[image, first : first + step].to(dtype)
            if logits_QHW.shape[1:] != (H, W):
                logits_QHW = F.interpolate(
                    logits_QHW[None], size=(H, W), mode="bilinear", align_corners=False
                )[0]
            bits_QS = (logits_QHW > threshold).flatten(1)
            both_MQ = sum(
                (target.float() @ bits.float().T).double()
                for target, bits in zip(
                    targets_MS.split(_CHUNK_PIXELS, 1), bits_QS.split(_CHUNK_PIXELS, 1), strict=True
                )
            )
            either_MQ = area_M1 + bits_QS.sum(1, dtype=torch.float64) - both_MQ
            iou_MQ = both_MQ / either_MQ.clamp(min=1)
            iou_GQ[mine_M, first : first + step] = iou_MQ.to(dtype)
    return iou_GQ
