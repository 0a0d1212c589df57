"""What the reader of COCO annotation files returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alignmask._printing import counted
from alignmask.data.faults import CAUSES, NO_POLYGON, some


class AnnotationRecord(NamedTuple):
    id: int
    image_id: int
    category_id: int
    counts: bytes
    """The mask as compressed RLE."""
    pixels: int
    """Area of the mask."""
    area: float
    """Area that the file says, by which COCO's evaluation tells small objects from large ones; the
    mask's if it says none."""
    crowd: bool

    @property
    def is_instance(self) -> bool:
        """Whether it can be trained on: a single object with a pixel at least."""
        return not self.crowd and self.pixels > 0


class ImageRecord(NamedTuple):
    id: int
    file_name: str | None
    height: int
    width: int


@dataclass(frozen=True)
class CocoFile:
    """A checked COCO annotation file."""

    path: Path
    images: dict[int, ImageRecord]
    """By image id, in the file's order."""
    categories: dict[int, str]
    """Names by category id, sorted by id."""
    annotations: list[AnnotationRecord]
    """In the file's order."""
    listed: int
    """Number of annotations that the file has of these images."""
    without_polygon: list[str]
    """Which annotations were left out because no polygon of 3 points or more is there."""
    short_polygons: int
    """Polygons of fewer than 3 points that were left out of annotations that have others."""
    places: Mapping[int, str] = field(default_factory=dict)
    """Where an annotation is, by its id, if it was read from another form than COCO's."""

    def where(self, annotation: AnnotationRecord) -> str:
        """How to name an annotation to the user."""
        return self.places.get(
            annotation.id, f"annotation id {annotation.id}, image id {annotation.image_id}"
        )

    def warn_left_out(self, stacklevel: int = 2) -> None:
        """One warning for all annotations that have no mask, if there are any."""
        if self.without_polygon:
            share = ""
            if 2 * len(self.without_polygon) > self.listed:
                share = f" of {self.listed} ({CAUSES[NO_POLYGON]})"
            warnings.warn(
                f"{self.path}: {counted(len(self.without_polygon), 'annotation')}{share} left out, "
                f"{NO_POLYGON}: {some(self.without_polygon, '; ')}",
                stacklevel=stacklevel + 1,
            )
