"""What all conversions have in common: what was read becomes a COCO file by the rules of the one
reader, and what is to be written is taken from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from alignmask._files import write_json
from alignmask.data.batch import Size
from alignmask.data.coco_json import (
    AnnotationRecord,
    CocoFile,
    ImageRecord,
    read_coco_with_content,
    read_draft,
)
from alignmask.data.draft import Draft
from alignmask.data.faults import Faults, SegmentationError
from alignmask.data.masks import encode_segmentation
from alignmask.data.outlines import outlines


class Instance(NamedTuple):
    """An instance to be written in another form."""

    name: str
    """Of its class."""
    record: AnnotationRecord
    polygons: list[list[float]]
    """As the file has them, x, y, x, y, ...; empty if the file has a mask."""

    def mask_HW(self, size: Size) -> np.ndarray:
        mask_HW: np.ndarray = coco_mask.decode(
            {"size": list(size), "counts": self.record.counts}
        ).astype(bool)
        return mask_HW

    def cropped(self, size: Size) -> tuple[np.ndarray, int, int]:
        """The smallest part of its mask that has all its pixels, and where that begins: left,
        top."""
        mask_HW = self.mask_HW(size)
        (top, bottom), (left, right) = (
            np.flatnonzero(mask_HW.any(axis=axis))[[0, -1]].tolist() for axis in (1, 0)
        )
        return mask_HW[top : bottom + 1, left : right + 1], left, top

    def as_polygons(self, size: Size) -> list[list[float]] | None:
        """Polygons that cover it: those of the file, or those along the edges of its pixels. None
        for a mask with holes, which polygons cannot say."""
        if self.polygons:
            return self.polygons
        found = outlines(self.mask_HW(size))
        if any(len(rings) > 1 for rings in found):
            return None
        return [[float(value) for corner in outer for value in corner] for outer, *_ in found]


def instances_of(
    annotations: Path, counts: Counter[str]
) -> tuple[CocoFile, dict[int, list[Instance]]]:
    """The annotation file, and its instances by image. Counts them, and what is left out.

    Raises:
        CocoError: As `read_coco`.
    """
    file, content = read_coco_with_content(annotations)
    file.warn_left_out()
    segmentations = {a["id"]: a["segmentation"] for a in content["annotations"]
                     if "segmentation" in a}  # fmt: skip
    found: dict[int, list[Instance]] = {image_id: [] for image_id in file.images}
    counts["images"] = len(found)
    for record in file.annotations:
        if not record.is_instance:
            counts["crowds left out" if record.crowd else "empty masks left out"] += 1
            continue
        segmentation = segmentations[record.id]
        polygons = segmentation if isinstance(segmentation, list) else []
        found[record.image_id].append(
            Instance(
                file.categories[record.category_id],
                record,
                [polygon for polygon in polygons if len(polygon) >= 6],
            )
        )
        counts["instances"] += 1
    return file, found


def file_of(image: ImageRecord, suffix: str) -> str:
    """The name of an image's own file of annotations, in the subfolder that the image is in."""
    parts = (image.file_name or str(image.id)).replace("\\", "/").split("/")
    inside = [part for part in parts if part not in ("", ".", "..")] or [str(image.id)]
    return str(Path(*inside).with_suffix(suffix))


def files_of(file: CocoFile, suffix: str) -> dict[int, str]:
    """`file_of` every image, by its id. Raises CocoError if two images would have one file."""
    names = {image.id: file_of(image, suffix) for image in file.images.values()}
    faults, owners = Faults(), dict[str, int]()
    for image_id, name in names.items():
        first = owners.setdefault(name.casefold(), image_id)
        if first != image_id:
            place = f"image id {first} and image id {image_id}: {name}"
            faults.add("of images that would have one file", place)
    faults.raise_if_any(str(file.path), f"{suffix} files")
    return names


class Shapes:
    """The shapes of one image: those of one label and one group are an instance."""

    def __init__(self, image_id: int, size: Size) -> None:
        self.image_id, self.size = image_id, size
        self._regions: dict[tuple[str, int | str], list[Any]] = {}
        self._places: dict[tuple[str, int | str], str] = {}

    def add(self, label: str, group: Any, region: Any, place: str) -> None:
        """Add a polygon or a mask [H, W]. One whose group is None is an instance of its own."""
        # An instance of its own has a number, which no group's name equals.
        key = (label, len(self._places) if group is None else str(group))
        self._regions.setdefault(key, []).append(region)
        self._places.setdefault(key, place)

    def add_to(self, draft: Draft) -> None:
        """Add the instances to the draft. What cannot be drawn is a fault."""
        for key, regions in self._regions.items():
            place = self._places[key]
            try:
                draft.add(self.image_id, key[0], united(regions, self.size), place)
            except SegmentationError as error:
                draft.faults.add(error.kind, f"{place}: {error}")


def united(regions: list[Any], size: Size) -> Any:
    """The COCO segmentation of a union of polygons and of masks [H, W].

    Raises SegmentationError for polygons that cannot be drawn.
    """
    if all(isinstance(region, list) for region in regions):
        return regions
    rles = [
        encode_segmentation([region], size)
        if isinstance(region, list)
        else coco_mask.encode(np.asfortranarray(region, np.uint8))
        for region in regions
    ]
    union = coco_mask.merge(rles)
    return {"size": list(size), "counts": union["counts"].decode()}


def clipped(mask_HW: np.ndarray, left: int, top: int, size: Size) -> np.ndarray:
    """A mask that begins at a pixel, as one of the whole image; what is outside of it is cut
    off."""
    whole_HW = np.zeros(size, bool)
    height, width = mask_HW.shape
    y, x = max(top, 0), max(left, 0)
    end_y, end_x = min(top + height, size[0]), min(left + width, size[1])
    if y < end_y and x < end_x:
        whole_HW[y:end_y, x:end_x] = mask_HW[y - top : end_y - top, x - left : end_x - left]
    return whole_HW


_MOST_CORNERS = 4096
"""Of an ellipse, which then differs from it by less than a pixel at any size that images have."""


def ellipse(
    center: tuple[float, float], radii: tuple[float, float], degrees: float = 0
) -> list[float]:
    """A polygon with the ellipse's area, turned clockwise in an image (y downwards)."""
    corners = min(max(16, int(2 * max(radii)) + 1), _MOST_CORNERS)
    angle_K = 2 * np.pi * np.arange(corners) / corners
    # A polygon inside of the ellipse would be too small.
    grown = np.sqrt(2 * np.pi / corners / np.sin(2 * np.pi / corners))
    x_K, y_K = grown * radii[0] * np.cos(angle_K), grown * radii[1] * np.sin(angle_K)
    turn = np.radians(degrees)
    points_K2 = np.stack(
        [
            center[0] + x_K * np.cos(turn) - y_K * np.sin(turn),
            center[1] + x_K * np.sin(turn) + y_K * np.cos(turn),
        ],
        axis=1,
    )
    values: list[float] = points_K2.round(3).ravel().tolist()
    return values


def write_draft(source: Path, draft: Draft, out: Path) -> Counter[str]:
    """Write the COCO file of what was read in another form; returns what it has, and what was left
    out, counted.

    Raises:
        CocoError: It has faults, of the other form or by the rules of `read_coco`.
    """
    file = read_draft(source, draft)
    content = draft.content()
    have_masks = {annotation.id for annotation in file.annotations}
    content["annotations"] = [a for a in content["annotations"] if a["id"] in have_masks]
    counts = draft.counts
    counts["instances"] = sum(annotation.is_instance for annotation in file.annotations)
    counts["annotations without a mask left out (boxes, fewer than 3 points)"] = len(
        file.without_polygon
    )
    counts["masks of zero area, which training leaves out"] = sum(
        annotation.pixels == 0 for annotation in file.annotations
    )
    write_json(out, content)
    return +counts
