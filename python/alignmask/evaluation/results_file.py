"""COCO annotation and results files as the evaluation needs them: checked, every segmentation a
compressed RLE."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from alignmask._printing import counted
from alignmask.data import CocoError, rle
from alignmask.data.batch import Size
from alignmask.data.coco_json import read_coco
from alignmask.data.faults import NO_POLYGON, Faults, SegmentationError, brief, is_number, some
from alignmask.data.json_files import Records, read_records
from alignmask.evaluation.file_names import FileNames

UNKNOWN_IMAGE, UNKNOWN_CATEGORY = "of an unknown image", "of an unknown category"
UNKNOWN_FILE = "of a file_name that the annotation file does not have"


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
    file_names: dict[int, str] = field(default_factory=dict)
    """By image id, of the images that have one."""

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
            raise CocoError(f"{self.source}: no image has id {some(unknown)}")
        sizes = {image_id: self.sizes[image_id] for image_id in wanted}
        return GroundTruth(
            self.source,
            sizes,
            self.categories,
            [a for a in self.annotations if a["image_id"] in sizes],
            {i: name for i, name in self.file_names.items() if i in sizes},
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
    """Entries left out because of `ignore_unknown` or by suppression, counted by reason."""

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


def load_ground_truth(
    annotations: Path | str | GroundTruth, images: Path | None = None
) -> GroundTruth:
    """Read a COCO annotation file (the last few are kept in memory, by path and modification time)
    or a folder of YOLO labels.

    Args:
        images: Of a folder of YOLO labels, as in `read_coco`.

    Raises:
        CocoError: As `read_coco`, which reads the file for training, too. Annotations without a
            polygon of 3 points or more are left out with a warning, as in training.
    """
    if isinstance(annotations, GroundTruth):
        return annotations
    path = Path(annotations).resolve()
    if not path.is_file():
        return _read_ground_truth(path, images)
    return _kept_ground_truth(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _kept_ground_truth(path: Path, _modified: int) -> GroundTruth:
    return _read_ground_truth(path, None)


def _read_ground_truth(path: Path, images: Path | None) -> GroundTruth:
    file = read_coco(path, images=images)
    file.warn_left_out(stacklevel=3)
    sizes = {image.id: (image.height, image.width) for image in file.images.values()}
    annotations: list[dict[str, Any]] = []
    for annotation in file.annotations:
        segmentation = {"size": list(sizes[annotation.image_id]), "counts": annotation.counts}
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": annotation.image_id,
                "category_id": annotation.category_id,
                "segmentation": segmentation,
                "area": annotation.area,
                "bbox": mask_utils.toBbox(segmentation).tolist(),
                "iscrowd": int(annotation.crowd),
            }
        )
    if all(annotation["iscrowd"] for annotation in annotations):
        warnings.warn(
            f"{path}: no annotation is an instance "
            f"({counted(len(annotations), 'crowd')} among {file.listed}): there is nothing to be "
            "found, and AP is not defined",
            stacklevel=3,
        )
    names = {image.id: image.file_name for image in file.images.values() if image.file_name}
    return GroundTruth(str(path), sizes, file.categories, annotations, names)


def load_results(
    results: Path | str | Sequence[dict[str, Any]] | Results,
    ground_truth: GroundTruth,
    ignore_unknown: bool = False,
) -> Results:
    """Read a COCO results file (a list of entries with image_id, category_id, segmentation, score)
    or such a list.

    Segmentations may be compressed RLE, uncompressed RLE or polygons. An entry with a `file_name`,
    as `alignmask predict` writes it, is of the image of that name, whatever its image_id. All other
    keys of an entry are left out. (With a `bbox`, the official tool would take the area of the box
    for that of the mask.)

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
        source, raw = str(results), read_records(Path(results))
    else:
        source, raw = "results", results
    if not isinstance(raw, (list, tuple, Records)):
        raise CocoError(
            f"{source}: a COCO results file is a list of entries, got {type(raw).__name__}"
        )
    faults = Faults()
    unknown = Faults(
        {
            UNKNOWN_IMAGE: f"the annotation file's ids are {_range(ground_truth.sizes)}",
            UNKNOWN_FILE: "without file_name, an entry is of the image of its image_id",
            UNKNOWN_CATEGORY: f"the annotation file's ids are {_range(ground_truth.categories)}",
        }
    )
    entries, renumbered = [], []
    names = FileNames(ground_truth.file_names)
    for position, entry in enumerate(raw):
        where = f"entry {position}"
        if not isinstance(entry, dict) or not {"image_id", "category_id", "score"} <= entry.keys():
            image = (
                f" (image {brief(entry['image_id'])})"
                if isinstance(entry, dict) and "image_id" in entry
                else ""
            )
            faults.add("lacking image_id, category_id or score", where + image)
            continue
        image_id, category_id, score = entry["image_id"], entry["category_id"], entry["score"]
        where = f"entry {position} (image {brief(image_id)})"
        if "segmentation" not in entry:
            faults.add(
                "of a box without a segmentation" if "bbox" in entry else "without a segmentation",
                where,
            )
            continue
        if not is_id(image_id) or not is_id(category_id):
            faults.add(
                "whose image_id or category_id is not an integer",
                f"{where}: category {brief(category_id)}",
            )
            continue
        if not is_number(score):
            unknown.add("with a score that is not a finite number", f"{where}: {brief(score)}")
            continue
        if names and isinstance(entry.get("file_name"), str):
            meant = names.meant(entry["file_name"], int(image_id))
            place = f"{where}: {brief(entry['file_name'])}"
            if not meant:
                unknown.add(UNKNOWN_FILE, place)
                continue
            if len(meant) > 1:
                faults.add("whose file_name fits several images", f"{place}: {some(meant)}")
                continue
            if meant[0] != image_id:
                renumbered.append(f"{where} is image id {meant[0]}")
            image_id = meant[0]
        size = ground_truth.sizes.get(image_id)
        if size is None:
            unknown.add(UNKNOWN_IMAGE, where)
            continue
        if category_id not in ground_truth.categories:
            unknown.add(UNKNOWN_CATEGORY, f"{where}: category {brief(category_id)}")
            continue
        segmentation = entry["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation.get("size"), (list, tuple)):
            segmentation = {**segmentation, "size": list(segmentation["size"])}
            if segmentation["size"] != list(size):
                unknown.add(
                    "whose mask has another size than the image",
                    f"{where}: mask {brief(segmentation['size'])}, image {list(size)} (height, "
                    "width)",
                )
                continue
        try:
            mask = rle.from_coco(segmentation, size)
        except SegmentationError as error:
            faults.add(error.kind, f"{where}: {error}")
            continue
        if mask is None:
            faults.add(NO_POLYGON, where)
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
    if renumbered:
        warnings.warn(
            f"{source}: {counted(len(renumbered), 'entry', 'entries')} matched by file_name, which "
            f"the image_id contradicts: {some(renumbered, '; ', 1)}",
            stacklevel=2,
        )
    return Results(source, entries, {kind: len(places) for kind, places in unknown.places.items()})


def is_id(value: Any) -> bool:
    """Whether it is an integer, in any form that tools write (7, 7.0, NumPy's)."""
    return is_number(value) and value == int(value)


def _range(ids: Iterable[int]) -> str:
    found = sorted(ids)
    return (
        ", ".join(map(str, found))
        if len(found) <= 2
        else f"{found[0]}, {found[1]}, ..., {found[-1]}"
    )
