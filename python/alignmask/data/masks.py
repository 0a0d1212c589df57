"""COCO segmentations (polygons, run-length encodings) as bit masks, through pycocotools.

Dimensions: N instances, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from alignmask.data.batch import Size
from alignmask.data.faults import PAIRS, SegmentationError, brief

Segmentation = list[list[float]] | bytes
"""The two forms kept: polygons (x, y, x, y, ... in pixels), or the counts of a compressed RLE."""

# Rasterising takes time and memory in proportion to the length of an edge, even outside of the
# image. No image is this large.
_LARGEST_COORDINATE = 1e5

_NUMBERS = frozenset((int, float))


def parse_segmentation(segmentation: Any, size: Size) -> tuple[Segmentation, int]:
    """Check the structure of a JSON segmentation against its image's size (height, width); cheap,
    decodes nothing.

    Returns one of the two forms kept, and the number of polygons left out for having fewer than 3
    points (so an empty list means that nothing is left). Compressed counts are to be checked by
    `measure_counts`. Raises SegmentationError for anything that is not COCO's format.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation)
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        return polygons, len(segmentation) - len(polygons)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise SegmentationError(
            f"expected polygons or an RLE with size and counts, got {brief(segmentation)}"
        )
    if segmentation["size"] != list(size):
        raise SegmentationError(
            f"RLE size {segmentation['size']} differs from the image's [height, width] {list(size)}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, str) and counts:
        # Whatever is not ASCII becomes bytes that no count has.
        return counts.encode("utf-8", "surrogatepass"), 0
    if not isinstance(counts, list) or not all(
        type(count) is int and count >= 0 for count in counts
    ):
        raise SegmentationError(
            f"expected RLE counts as a string or as non-negative integers, got {brief(counts)}"
        )
    if sum(counts) != size[0] * size[1]:
        raise SegmentationError(_wrong_coverage(sum(counts), size))
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"], 0


def measure_counts(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Measure compressed RLEs: the pixels covered (-1 if it is damaged) and the pixels set, both
    int64 [N].

    pycocotools reads past the end of counts that are cut off, and leaves a mask uninitialised that
    they do not fill; so every RLE of a file is checked once, all of them together.

    The format: a count is a little-endian number of 5-bit digits, each stored as digit + 48, with
    bit 32 set on all but the last one and bit 16 of the last one as its sign; from the fourth count
    on, the difference to the count two places before is stored.
    """
    if not counts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    lengths = np.array([len(text) for text in counts])
    digits = np.frombuffer(b"".join(counts), dtype=np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(counts)), lengths)
    text_ends = np.cumsum(lengths)
    damaged_digit = (digits < 0) | (digits > 63)
    damaged_digit[text_ends - 1] |= digits[text_ends - 1] & 32 != 0

    ends_number = digits & 32 == 0
    ends_number[text_ends - 1] = True
    ends = np.flatnonzero(ends_number)
    starts = np.concatenate(([0], ends[:-1] + 1))
    widths = ends - starts + 1  # 7 digits hold any 32-bit count; longer ones must not overflow here
    shift = np.minimum(5 * (np.arange(len(digits)) - np.repeat(starts, widths)), 35)
    values = np.add.reduceat((digits & 31) << shift, starts)
    values -= (digits[ends] & 16 != 0).astype(np.int64) << np.minimum(5 * widths, 40)

    # Undo the differences: in a text, counts 1, 3, 5, ... and counts 2, 4, 6, ... each make a
    # running sum.
    owner_of_value = owner[starts]
    first_value = np.flatnonzero(np.diff(owner_of_value, prepend=-1))
    place = np.arange(len(values)) - first_value[owner_of_value]
    chain = 3 * owner_of_value + np.where(place == 0, 0, 2 - place % 2)
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(values[order])
    chain_starts = np.flatnonzero(np.diff(chain[order], prepend=-1))
    before = np.repeat(
        sums[chain_starts] - values[order][chain_starts], np.diff(chain_starts, append=len(values))
    )
    values[order] = sums - before

    damaged = np.logical_or.reduceat(damaged_digit, text_ends - lengths)
    damaged |= np.logical_or.reduceat((widths > 7) | (values < 0), first_value)
    covered = np.where(damaged, -1, np.add.reduceat(values, first_value))
    return covered, np.where(damaged, 0, np.add.reduceat(values * (place % 2), first_value))


def check_coverage(counts: bytes, covered: int, size: Size) -> None:
    """Raise SegmentationError, with the reason, unless the counts of this `measure_counts` result
    fill the image."""
    if covered < 0:
        raise SegmentationError(f"RLE counts are damaged or cut off: {brief(counts)}")
    if covered != size[0] * size[1]:
        raise SegmentationError(_wrong_coverage(covered, size))


def encode_segmentation(segmentation: Segmentation, size: Size) -> dict[str, Any]:
    """One parsed segmentation as pycocotools' RLE. Raises SegmentationError for polygons whose
    coordinates are not finite numbers."""
    if isinstance(segmentation, bytes):
        return {"size": list(size), "counts": segmentation}
    rles = coco_mask.frPyObjects([_coordinates(polygon) for polygon in segmentation], *size)
    return rles[0] if len(rles) == 1 else coco_mask.merge(rles)


def decode_rles(rles: list[dict[str, Any]], size: Size) -> np.ndarray:
    """Checked pycocotools RLEs as bool [N, H, W], C-contiguous."""
    if not rles:
        return np.zeros((0, *size), dtype=bool)
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1)).view(bool)


def are_normalised(polygons: Segmentation, size: Size) -> bool:
    """Whether all coordinates lie between 0 and 1, not all of them at the ends, in an image of more
    than 2 pixels a side: they cannot be in pixels."""
    return (
        isinstance(polygons, list)
        and bool(polygons)
        and min(size) > 2
        and all(0 <= value <= 1 for polygon in polygons for value in polygon)
        and any(0 < value < 1 for polygon in polygons for value in polygon)
    )


def _check_polygons(polygons: list[Any]) -> None:
    """Raise SegmentationError unless it is a list of lists of an even number of coordinates."""
    if any(
        isinstance(polygon, list) and list in map(type, polygon) and any(map(_is_pair, polygon))
        for polygon in polygons
    ):
        raise SegmentationError(f"expected x, y, x, y, ..., got {brief(polygons)}", PAIRS)
    if len(polygons) > 2 and all(_is_pair(polygon) for polygon in polygons):
        raise SegmentationError(
            f"expected a list of polygons [x, y, x, y, ...], got {brief(polygons)}", PAIRS
        )
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise SegmentationError(
                "expected a list of polygons, each a list of x, y, x, y, ..., got "
                f"{brief(polygons)}"
            )
        if len(polygon) % 2:
            raise SegmentationError(
                f"expected polygons as lists of x, y, x, y, ..., got {len(polygon)} numbers: "
                f"{brief(polygon)}"
            )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _coordinates(polygon: list[float]) -> np.ndarray:
    # NumPy would read None as NaN, and text as a number.
    if not _NUMBERS.issuperset(map(type, polygon)):
        strange = next(value for value in polygon if type(value) not in _NUMBERS)
        raise SegmentationError(
            f"polygon with something that is not a number: {brief(strange)} in {brief(polygon)}"
        )
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except OverflowError:  # an integer of more than 308 digits
        coordinates = np.full(1, np.inf)
    if not (np.abs(coordinates) <= _LARGEST_COORDINATE).all():  # NaN fails the comparison
        raise SegmentationError(
            f"polygon coordinates must be finite and within +-{_LARGEST_COORDINATE:g}: "
            f"{brief(polygon)}"
        )
    return coordinates


def _wrong_coverage(covered: int, size: Size) -> str:
    return f"RLE covers {covered} pixels, the image has {size[0]} x {size[1]} = {size[0] * size[1]}"
