"""Run-length encoded masks: from torch, and from any of COCO's JSON forms.

Shapes: N masks, H height, W width.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hotcoco import mask as hotcoco_mask
from pycocotools import mask as mask_utils

from alignmask.data.batch import Size
from alignmask.data.masks import (
    Segmentation,
    check_coverage,
    encode_segmentation,
    measure_counts,
    parse_segmentation,
)


def encode(masks_NHW: torch.Tensor) -> list[dict[str, Any]]:
    """Encodes bool masks as compressed RLE, JSON-ready: `{"size": [h, w], "counts": str}` each."""
    if masks_NHW.dtype != torch.bool or masks_NHW.ndim != 3:
        raise ValueError(
            f"encode: masks must be bool [N, H, W], got {masks_NHW.dtype} {list(masks_NHW.shape)}"
        )
    # COCO's runs go down the columns: H must be the fastest axis. Transposing on the device saves a
    # copy on the host.
    columns_NWH = masks_NHW.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)
    return [
        {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        for rle in mask_utils.encode(columns_NWH.transpose(2, 1, 0))
    ]


def from_runs(counts_R: torch.Tensor, offsets: torch.Tensor, size: Size) -> list[dict[str, Any]]:
    """Compresses the run lengths of masks of one size, as `alignmask.ops.mask_rle` returns them.
    The result is as that of `encode`."""
    counts, ends = counts_R.cpu().numpy(), offsets.tolist()
    return [
        {
            "size": list(size),
            "counts": mask_utils.frPyObjects(
                {"size": list(size), "counts": counts[first:end]}, *size
            )["counts"].decode("ascii"),
        }
        for first, end in pairwise(ends)
    ]


def from_coco(segmentation: Any, size: Size) -> dict[str, Any] | None:
    """One COCO `segmentation` (polygons, uncompressed or compressed RLE) as compressed RLE with
    `bytes` counts.

    `size` is the image's (height, width). None if no polygon of 3 points or more is there. Raises
    SegmentationError saying what is wrong with the segmentation. (pycocotools checks none of it:
    runs that end early make it hang, or read past the end.)
    """
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), bytes):
        segmentation = {**segmentation, "counts": segmentation["counts"].decode("latin-1")}
    parsed, _ = parse_segmentation(segmentation, size)
    return from_parsed(parsed, size) if parsed else None


def from_parsed(parsed: Segmentation, size: Size) -> dict[str, Any]:
    """What `parse_segmentation` returned as compressed RLE. Raises SegmentationError for damaged
    counts, and for coordinates that are not finite numbers."""
    if isinstance(parsed, bytes) and not _is_canonical(parsed, size):
        check_coverage(parsed, int(measure_counts([parsed])[0][0]), size)
    return encode_segmentation(parsed, size)


def _is_canonical(counts: bytes, size: Size) -> bool:
    """Whether `counts` is what COCO's encoder writes for some mask of this size: sufficient for it
    to be sound, and found fast.  A union with nothing rewrites the runs in canonical form."""
    rle = {"size": list(size), "counts": counts}
    try:
        return hotcoco_mask.merge([rle, _nothing(size)])["counts"] == counts
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def _nothing(size: Size) -> dict[str, Any]:
    return mask_utils.encode(np.zeros(size, np.uint8, order="F"))
