"""What is wrong with a file of the user's: every fault of a kind is counted, the first few are
shown, and the likely cause is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN_FAULTS = 5
"""Number of faults of a kind that an error message lists; the others are counted."""

CROWD = "crowd"
NO_POLYGON = "without a polygon of 3 points or more"
ZERO_AREA = "with a mask of zero area"
PAIRS = "whose points are pairs [x, y]"
NORMALISED = "with polygons between 0 and 1"
BAD_SEGMENTATION = "with a faulty segmentation"
BAD_AREA = "with an area that is not a finite number of 0 or more"

CAUSES = {
    CROWD: (
        "iscrowd = 1 marks a region that is no single object; some exports, such as CVAT's of brush "
        "masks, mark every object so: set iscrowd to 0, or export polygons"
    ),
    NO_POLYGON: (
        "boxes without masks, or single points: instance segmentation needs a mask of every object"
    ),
    ZERO_AREA: "the polygons lie outside of the image, or are smaller than a pixel",
    PAIRS: "COCO lists the coordinates one after the other: [x, y, x, y, ...]",
    NORMALISED: (
        "coordinates are in pixels; these look like shares of the image's width and height: "
        "multiply x by the width and y by the height"
    ),
    BAD_AREA: "leave area out, and the mask's is taken",
}
"""The likely cause of a kind of fault, or what to do."""


class CocoError(ValueError):
    """A fault in a COCO-format data set; the message names file, image id and annotation id as far
    as they apply."""


class SegmentationError(ValueError):
    """A segmentation that is not COCO's format; `kind` is what it is counted as."""

    def __init__(self, text: str, kind: str = BAD_SEGMENTATION) -> None:
        super().__init__(text)
        self.kind = kind


class Faults:
    """Collects faults by kind, so that one error message can report all of them."""

    def __init__(self, notes: dict[str, str] | None = None) -> None:
        """notes: An explanation of a kind of fault, beside those of `CAUSES`."""
        self.places: dict[str, list[str]] = {}
        """Where a fault was found, by kind."""
        self.notes = CAUSES | (notes or {})

    def __bool__(self) -> bool:
        return bool(self.places)

    def add(self, kind: str, place: str) -> None:
        self.places.setdefault(kind, []).append(place)

    def update(self, other: Faults) -> None:
        """Take over the faults of another collection."""
        for kind, places in other.places.items():
            self.places.setdefault(kind, []).extend(places)
        self.notes = self.notes | other.notes

    def summary(self) -> str:
        return ", ".join(f"{len(places)} {kind}" for kind, places in self.places.items())

    def lines(self, shown: int = SHOWN_FAULTS) -> list[str]:
        """For every kind: where, and the likely cause."""
        return [
            f"  {kind}: {some(places, '; ', shown)}"
            + (f" ({self.notes[kind]})" if kind in self.notes else "")
            for kind, places in self.places.items()
        ]

    def raise_if_any(self, source: str, what: str) -> None:
        """Raise a CocoError that reports all of them, if there are any."""
        if self:
            raise CocoError("\n".join([f"{source}: {what}: {self.summary()}", *self.lines()]))


def some(items: Sequence[Any], separator: str = ", ", shown: int = SHOWN_FAULTS) -> str:
    """The first few items, and the number of the others."""
    text = separator.join(str(item) for item in items[:shown])
    rest = len(items) - shown
    return text + (f"{separator}and {rest} more" if rest > 0 else "")


def brief(value: Any) -> str:
    """The value as Python writes it, cut off after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold (NumPy's included, bool not)."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False
