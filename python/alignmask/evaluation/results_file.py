"""COCO annotation and results files as the evaluation needs them: checked, every segmentation a
compressed RLE."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from alignmask.data import CocoError, read_coco_json
from alignmask.data.batch import Size
from alignmask.evaluation import rle

UNKNOWN_IMAGE, UNKNOWN_CATEGORY = "of an unknown image", "of an unknown category"
NO_POLYGON = "no polygon of 3 points or more"
SHOWN_FAULTS = 5
"""Number of faults of a kind that an error message lists; the others are counted."""


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of a data set.

    Annotation ids are numbered anew from 1: the official tool silently counts a match with an
    annotation of id 0 as a miss.
    """

    source: str
    sizes: dict[int, Size]
    """(height, width) of every image by image id, in the file's order."""
    categories: dict[int, str]
    """Category names by category id, sorted by id."""
    annotations: list[dict[str, Any]]
    """`id, image_id, category_id, segmentation` (compressed RLE, bytes), `area, bbox, iscrowd`. Not
    to be changed."""

    @cached_property
    def by_image(self) -> dict[int, list[dict[str, Any]]]:
        """The annotations of each image that has any."""
        return group_by_image(self.annotations)

    def subset(self, image_ids: Iterable[int]) -> GroundTruth:
        """The same data set restricted to some of its images."""
        wanted = list(dict.fromkeys(image_ids))
        if not wanted:
            raise ValueError(f"{self.source}: there are no images to evaluate on")
        if unknown := [image_id for image_id in wanted if image_id not in self.sizes]:
            raise CocoError(f"{self.source}: no image has id {_some(unknown)}")
        sizes = {image_id: self.sizes[image_id] for image_id in wanted}
        return GroundTruth(
            self.source,
            sizes,
            self.categories,
            [a for a in self.annotations if a["image_id"] in sizes],
        )

    def as_coco(self) -> dict[str, Any]:
        """A COCO data set dict of fresh records, which a tool may change."""
        return {
            "info": {},
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in self.sizes.items()],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
            "annotations": [dict(annotation) for annotation in self.annotations],
        }


@dataclass(frozen=True)
class Results:
    """The predictions of a model, checked against a `GroundTruth`."""

    source: str
    entries: list[dict[str, Any]]
    """`image_id, category_id, segmentation` (compressed RLE, bytes), `score`, in the file's order.
    Not to be changed."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Entries left out because of `ignore_unknown`, counted by reason."""

    def subset(self, image_ids: Iterable[int]) -> Results:
        wanted = set(image_ids)
        return Results(
            self.source, [e for e in self.entries if e["image_id"] in wanted], self.ignored
        )

    def positions(self) -> dict[int, np.ndarray]:
        """Where the predictions of each image are in `entries`, ascending."""
        found: dict[int, list[int]] = {}
        for position, entry in enumerate(self.entries):
            found.setdefault(entry["image_id"], []).append(position)
        return {image_id: np.array(index) for image_id, index in found.items()}


AnnotationsLike = Path | str | GroundTruth
ResultsLike = Path | str | Sequence[dict[str, Any]] | Results


def group_by_image(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["image_id"], []).append(entry)
    return groups


def load_ground_truth(annotations: Path | str | GroundTruth) -> GroundTruth:
    """Read a COCO annotation file (the last few are kept in memory, by path and modification time).

    Raises:
        CocoError: The file cannot be read as a COCO annotation file, an id occurs twice, or
            annotations have faults (unknown image or category, damaged segmentation, RLE that does
            not fit its image); ids are named. Annotations without a polygon of 3 points or more are
            left out with a warning, as in training.
    """
    if isinstance(annotations, GroundTruth):
        return annotations
    path = Path(annotations).resolve()
    return _load_ground_truth(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _load_ground_truth(path: Path, _modified: int) -> GroundTruth:
    data = read_coco_json(path)
    for kind in ("images", "categories", "annotations"):
        seen: set[int] = set()
        for number, record in enumerate(data[kind]):
            if not isinstance(record, dict) or not isinstance(record.get("id"), int):
                raise CocoError(
                    f"{path}: {kind}[{number}]: expected an object with an integer id, got "
                    f"{_brief(record)}"
                )
            if record["id"] in seen:
                of_image = f" (image id {record.get('image_id')})" if kind == "annotations" else ""
                raise CocoError(
                    f"{path}: {kind}[{number}]{of_image}: id {record['id']} occurs twice"
                )
            seen.add(record["id"])
    sizes: dict[int, Size] = {}
    for image in data["images"]:
        size = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise CocoError(
                f"{path}: image id {image['id']}: height and width must be positive integers, got "
                f"{size}"
            )
        sizes[image["id"]] = size
    categories = {
        category["id"]: str(category.get("name", category["id"])) for category in data["categories"]
    }
    if not sizes or not categories:
        raise CocoError(
            f"{path}: {len(sizes)} images and {len(categories)} categories: nothing to evaluate on"
        )
    faults = _Faults()
    annotations: list[dict[str, Any]] = []
    left_out: list[str] = []
    for annotation in data["annotations"]:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        where = f"annotation id {annotation['id']}, image id {image_id}"
        if not isinstance(image_id, int) or image_id not in sizes:
            faults.add("of an image that is not listed", where)
            continue
        if not isinstance(category_id, int) or category_id not in categories:
            faults.add("of a category that is not listed", f"{where}: category id {category_id}")
            continue
        try:
            segmentation = rle.from_coco(annotation.get("segmentation"), sizes[image_id])
        except ValueError as error:
            faults.add("with a faulty segmentation", f"{where}: {error}")
            continue
        if segmentation is None:
            left_out.append(where)
            continue
        area = annotation.get("area", mask_utils.area(segmentation))
        if not is_number(area):
            faults.add("with an area that is not a finite number", f"{where}: {area!r}")
            continue
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": segmentation,
                "area": float(area),
                "bbox": mask_utils.toBbox(segmentation).tolist(),
                "iscrowd": int(bool(annotation.get("iscrowd", 0))),
            }
        )
    faults.raise_if_any(str(path), "annotations")
    if left_out:
        warnings.warn(
            f"{path}: {len(left_out)} annotations left out: {NO_POLYGON}: {_some(left_out, '; ')}",
            stacklevel=3,
        )
    return GroundTruth(str(path), sizes, dict(sorted(categories.items())), annotations)


def load_results(
    results: Path | str | Sequence[dict[str, Any]] | Results,
    ground_truth: GroundTruth,
    ignore_unknown: bool = False,
) -> Results:
    """Read a COCO results file (a list of entries with image_id, category_id, segmentation, score)
    or such a list.

    Segmentations may be compressed RLE, uncompressed RLE or polygons. All other keys of an entry
    are left out. (With a `bbox`, the official tool would take the area of the box for that of the
    mask.)

    Args:
        ignore_unknown: Leave out (and count, with a warning) entries of unknown images or
            categories, entries whose mask has another size than the image, and entries without a
            finite score, instead of raising.
    Raises:
        CocoError: The file cannot be read, or entries have faults; one message counts them by kind
            and lists the first of each.
    """
    if isinstance(results, Results):
        return results
    if isinstance(results, (str, Path)):
        source, raw = str(results), read_json(Path(results))
    else:
        source, raw = "results", results
    if not isinstance(raw, (list, tuple)):
        raise CocoError(
            f"{source}: a COCO results file is a list of entries, got {type(raw).__name__}"
        )
    faults = _Faults()
    unknown = _Faults(
        {
            UNKNOWN_IMAGE: f"the annotation file's ids are {_range(ground_truth.sizes)}",
            UNKNOWN_CATEGORY: f"the annotation file's ids are {_range(ground_truth.categories)}",
        }
    )
    entries = []
    for position, entry in enumerate(raw):
        where = f"entry {position}"
        if not isinstance(entry, dict) or not {"image_id", "category_id", "score"} <= entry.keys():
            image = (
                f" (image {_brief(entry['image_id'])})"
                if isinstance(entry, dict) and "image_id" in entry
                else ""
            )
            faults.add("lacking image_id, category_id or score", where + image)
            continue
        image_id, category_id, score = entry["image_id"], entry["category_id"], entry["score"]
        where = f"entry {position} (image {_brief(image_id)})"
        if "segmentation" not in entry:
            faults.add(
                "of a box without a segmentation" if "bbox" in entry else "without a segmentation",
                where,
            )
            continue
        if not is_id(image_id) or not is_id(category_id):
            faults.add(
                "whose image_id or category_id is not an integer",
                f"{where}: category {_brief(category_id)}",
            )
            continue
        if not is_number(score):
            unknown.add("with a score that is not a finite number", f"{where}: {_brief(score)}")
            continue
        size = ground_truth.sizes.get(image_id)
        if size is None:
            unknown.add(UNKNOWN_IMAGE, where)
            continue
        if category_id not in ground_truth.categories:
            unknown.add(UNKNOWN_CATEGORY, f"{where}: category {_brief(category_id)}")
            continue
        segmentation = entry["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation.get("size"), (list, tuple)):
            segmentation = {**segmentation, "size": list(segmentation["size"])}
            if segmentation["size"] != list(size):
                unknown.add(
                    "whose mask has another size than the image",
                    f"{where}: mask {_brief(segmentation['size'])}, image {list(size)} (height, "
                    "width)",
                )
                continue
        try:
            mask = rle.from_coco(segmentation, size)
        except ValueError as error:
            faults.add("with a faulty segmentation", f"{where}: {error}")
            continue
        if mask is None:
            faults.add("with a faulty segmentation", f"{where}: {NO_POLYGON}")
            continue
        entries.append(
            {
                "image_id": int(image_id),
                "category_id": int(category_id),
                "segmentation": mask,
                "score": float(score),
            }
        )
    if unknown and ignore_unknown:
        warnings.warn(f"{source}: left out {unknown.summary()}", stacklevel=2)
    else:
        faults.update(unknown)
    faults.raise_if_any(source, f"of {len(raw)} entries")
    return Results(source, entries, {kind: len(places) for kind, places in unknown.places.items()})


class _Faults:
    """Collects faults by kind, so that one error message can report all of them."""

    def __init__(self, notes: dict[str, str] | None = None) -> None:
        """notes: An explanation of a kind of fault, to be added to its list."""
        self.places: dict[str, list[str]] = {}
        self.notes = notes or {}

    def __bool__(self) -> bool:
        return bool(self.places)

    def add(self, kind: str, place: str) -> None:
        self.places.setdefault(kind, []).append(place)

    def update(self, other: _Faults) -> None:
        self.places.update(other.places)
        self.notes = self.notes | other.notes

    def summary(self) -> str:
        return ", ".join(f"{len(places)} {kind}" for kind, places in self.places.items())

    def raise_if_any(self, source: str, what: str) -> None:
        if self:
            lists = [
                f"  {kind}: {_some(places, '; ')}"
                + (f" ({self.notes[kind]})" if kind in self.notes else "")
                for kind, places in self.places.items()
            ]
            raise CocoError("\n".join([f"{source}: {what}: {self.summary()}", *lists]))


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold (NumPy's included, bool not)."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def is_id(value: Any) -> bool:
    """Whether it is an integer, in any form that tools write (7, 7.0, NumPy's)."""
    return is_number(value) and value == int(value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _some(items: Sequence[Any], separator: str = ", ") -> str:
    shown = separator.join(str(item) for item in items[:SHOWN_FAULTS])
    rest = len(items) - SHOWN_FAULTS
    return shown + (f"{separator}and {rest} more" if rest > 0 else "")


def _range(ids: Iterable[int]) -> str:
    found = sorted(ids)
    return (
        ", ".join(map(str, found))
        if len(found) <= 2
        else f"{found[0]}, {found[1]}, ..., {found[-1]}"
    )


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CocoError if it cannot be read, with the place of a syntax error."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CocoError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CocoError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise CocoError(f"{path}: not a COCO file: its lists are nested too deeply") from error
