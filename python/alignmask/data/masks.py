"""COCO segmentations (polygons, run-length encodings) as bit masks, through pycocotools.

Dimensions: N instances of one image, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from alignmask.data.batch import Size

Segmentation = list[list[float]] | bytes
"""The two forms kept: polygons (x, y, x, y, ... in pixels), or the counts of a compressed RLE."""

# Rasterising takes time and memory in proportion to an edge's length, wherever it lies; no image is this large.
_LARGEST_COORDINATE = 1e6


def parse_segmentation(segmentation: Any, size: Size) -> tuple[Segmentation, int]:
    """Check the structure of a JSON segmentation against its image's size (height, width); cheap, decodes nothing.

    Returns it in one of the two forms kept, and the number of polygons left out for having fewer than 3 points (so an
    empty list means that nothing is left). Raises ValueError for anything else that is not COCO's format.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise ValueError(f"expected polygons as lists of x, y, x, y, ..., got {_brief(polygon)}")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        return polygons, len(segmentation) - len(polygons)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(f"expected polygons or an RLE with size and counts, got {_brief(segmentation)}")
    if segmentation["size"] != list(size):
        raise ValueError(f"RLE size {segmentation['size']} differs from the image's [height, width] {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return counts.encode("utf-8"), 0
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"expected RLE counts as a string or as non-negative integers, got {_brief(counts)}")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"RLE covers {sum(counts)} pixels, the image has {size[0]} x {size[1]} = {size[0] * size[1]}")
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"], 0


def encode_segmentation(segmentation: Segmentation, size: Size) -> dict[str, Any]:
    """One instance as pycocotools' RLE. Raises ValueError for polygons or counts that make no mask of this size."""
    if isinstance(segmentation, bytes):
        _check_counts(segmentation, size)
        return {"size": list(size), "counts": segmentation}
    polygons = [_coordinates(polygon) for polygon in segmentation]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def decode_rles(rles: list[dict[str, Any]], size: Size) -> np.ndarray:
    """pycocotools RLEs as bool [N, H, W], C-contiguous. Raises ValueError for counts that overflow the size."""
    if not rles:
        return np.zeros((0, *size), dtype=bool)
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)).view(bool)


def _coordinates(polygon: list[float]) -> np.ndarray:
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"polygon with something that is not a number: {_brief(polygon)}") from error
    if coordinates.ndim != 1 or not np.all(np.abs(coordinates) <= _LARGEST_COORDINATE):  # NaN fails the comparison
        raise ValueError(f"polygon coordinates must be finite and within +-{_LARGEST_COORDINATE:g}: {_brief(polygon)}")
    return coordinates


def _check_counts(counts: bytes, size: Size) -> None:
    """Counts that end early would leave pycocotools' mask uninitialised or be read past their end, so they stop here.

    The format: a count is a little-endian number of 5-bit digits, each stored as digit + 48, with bit 32 set on all
    but the last one and bit 16 of the last one as its sign; from the fourth count on, the difference to the count two
    places before is stored.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError(f"RLE counts are damaged or cut off: {_brief(counts)}")
    starts = np.flatnonzero(np.concatenate(([True], digits[:-1] & 32 == 0)))
    lengths = np.diff(starts, append=len(digits))
    if lengths.max() > 12:
        raise ValueError(f"RLE counts are damaged, a number has {lengths.max()} digits: {_brief(counts)}")
    place = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << place, starts)
    negative = digits[starts + lengths - 1] & 16 != 0
    values -= negative.astype(np.int64) << (5 * lengths)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.sum() != size[0] * size[1]:
        raise ValueError(
            f"RLE covers {values.sum()} pixels (smallest count {values.min()}), "
            f"the image has {size[0]} x {size[1]} = {size[0] * size[1]}"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
