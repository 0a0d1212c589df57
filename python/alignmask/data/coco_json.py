"""The one reader of COCO annotation files, for training, evaluation, analysis and tools alike:
what it accepts, no later stage refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from alignmask._printing import counted
from alignmask.data import index, rle
from alignmask.data.draft import Draft
from alignmask.data.faults import (
    BAD_AREA,
    NORMALISED,
    CocoError,
    Faults,
    SegmentationError,
    brief,
    is_number,
)
from alignmask.data.json_files import Records, read_json, read_records
from alignmask.data.masks import are_normalised, parse_segmentation
from alignmask.data.records import AnnotationRecord, CocoFile, ImageRecord
from alignmask.data.yolo import read_yolo

_LISTS = ("images", "annotations", "categories")

MAX_PIXELS = 2**31 - 1
"""Of an image: pycocotools counts the pixels of masks in 32 bits."""


def fault(
    path: str | Path, text: str, image: int | None = None, annotation: int | None = None
) -> CocoError:
    """The error that names the JSON file, the image id and the annotation id."""
    where = [str(path)]
    if image is not None:
        where.append(f"image id {image}")
    if annotation is not None:
        where.append(f"annotation id {annotation}")
    return CocoError(f"{', '.join(where)}: {text}")


def read_coco_json(path: str | Path, images: Path | None = None) -> dict[str, Any]:
    """Parse a COCO JSON file; `images`, `annotations` and `categories` are checked to be lists. A
    folder of YOLO labels becomes what such a file would have.

    Args:
        images: The images of a folder of labels; by default those of the folder `images` in place
            of `labels`.

    Raises CocoError, with line and column for malformed JSON.
    """
    content, faults, _ = _content(Path(path), images)
    faults.raise_if_any(str(path), "YOLO labels")
    return content


def _content(
    path: Path, images: Path | None, read: Callable[[Path], Any] = read_json
) -> tuple[dict[str, Any], Faults, dict[int, str]]:
    """What the file or folder has, its faults so far, and where it has the annotations."""
    if path.is_dir():
        draft = read_yolo(path, images)
        return draft.content(), draft.faults, draft.places
    content = read(path)
    for key in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), (list, Records)):
            raise fault(path, f"expected a JSON object with a list {key!r}")
    return content, Faults(), {}


def _records(path: Path, images: Path | None) -> tuple[dict[str, Any], Faults, dict[int, str]]:
    """As `_content`, with annotations that are parsed when their turn comes."""
    return _content(path, images, lambda path: read_records(path, _LISTS))


def read_coco(path: str | Path, limit: int | None = None, images: Path | None = None) -> CocoFile:
    """Read a COCO annotation file, or a folder of YOLO labels, check all of it, and make every mask
    a compressed RLE. What a large file has is kept for the next time (see `alignmask.data.index`).

    Args:
        limit: Number of images to keep, from the start of the list, with their annotations; None
            keeps all. Masks of the others are not looked at.
        images: As in `read_coco_json`.

    Raises:
        CocoError: The file cannot be read, lists no images or no categories, or has faults: one
            message counts them by kind, and names the first few by their ids.
    """
    path = Path(path)

    def read() -> CocoFile:
        return _read(_Reader(path, *_records(path, images)), limit)

    return index.kept(path, read) if limit is None and index.is_worthwhile(path) else read()


def read_coco_with_content(path: Path) -> tuple[CocoFile, dict[str, Any]]:
    """As `read_coco`, and what `read_coco_json` returns; the file is parsed once."""
    content, faults, places = _content(path, None)
    return _read(_Reader(path, content, faults, places), None), content


def read_draft(path: Path, draft: Draft) -> CocoFile:
    """As `read_coco`, of what was read from another form in the file or folder `path`."""
    return _read(_Reader(path, draft.content(), draft.faults, draft.places), None)


def _read(reader: _Reader, limit: int | None) -> CocoFile:
    path = str(reader.path)
    categories, images = reader.categories(), reader.images()
    if not reader.places:  # faults of another form are told together with those of its masks
        reader.faults.raise_if_any(path, "images and categories")
    for what, found in (("images", images), ("categories", categories)):
        if not found and not reader.faults:
            raise fault(path, f"it lists no {what}")
    file = reader.annotations(categories, images, limit)
    reader.faults.raise_if_any(path, f"of {counted(file.listed, 'annotation')}")
    return file


def inspect_coco(path: str | Path, images: Path | None = None) -> tuple[CocoFile, Faults]:
    """What `read_coco` would return if the records with faults were not there, and the faults.
    Raises CocoError if the file is no COCO file."""
    reader = _Reader(Path(path), *_records(Path(path), images))
    categories, records = reader.categories(), reader.images()
    return reader.annotations(categories, records, None), reader.faults


class _Reader:
    """Collects the faults of a file. The records returned are of those without."""

    def __init__(
        self, path: Path, content: dict[str, Any], faults: Faults, places: dict[int, str]
    ) -> None:
        self.path, self.content, self.faults, self.places = path, content, faults, places

    def categories(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for where, category in self._identified("categories"):
            name = category.get("name", str(category["id"]))
            if self._is(str, name, f"{where}: name"):
                names[category["id"]] = name
        return dict(sorted(names.items()))

    def images(self) -> dict[int, ImageRecord]:
        records: dict[int, ImageRecord] = {}
        for where, image in self._identified("images"):
            height: Any = image.get("height")
            width: Any = image.get("width")
            name = image.get("file_name")
            if not all(type(side) is int and side > 0 for side in (height, width)):
                self.faults.add(
                    "whose height and width are not positive integers",
                    f"{where}: height {brief(height)}, width {brief(width)}",
                )
            elif height * width > MAX_PIXELS:
                self.faults.add(
                    f"of more than {MAX_PIXELS:,} pixels, which masks cannot count",
                    f"{where}: height {brief(height)}, width {brief(width)}",
                )
            elif name is None or self._is(str, name, f"{where}: file_name"):
                records[image["id"]] = ImageRecord(image["id"], name, height, width)
        return records

    def annotations(
        self,
        categories: dict[int, str],
        images: dict[int, ImageRecord],
        limit: int | None,
    ) -> CocoFile:
        kept = dict(itertools.islice(images.items(), limit))
        records: list[AnnotationRecord] = []
        listed, short_polygons, masks = 0, 0, 0
        normalised: list[str] = []
        without_polygon: list[str] = []
        for where, annotation in self._identified("annotations"):
            image_id: Any = annotation.get("image_id")
            category_id: Any = annotation.get("category_id")
            if annotation["id"] not in self.places:
                where = f"{where}, image id {brief(image_id)}"
            if not _is_key(image_id, images):
                self.faults.add("of an image that is not listed", where)
                continue
            if not _is_key(category_id, categories):
                self.faults.add(
                    "of a category that is not listed", f"{where}: category id {brief(category_id)}"
                )
                continue
            if image_id not in kept:
                continue
            listed += 1
            size = (images[image_id].height, images[image_id].width)
            try:
                parsed, short = parse_segmentation(annotation.get("segmentation"), size)
                if not parsed:
                    without_polygon.append(where)
                    continue
                mask = rle.from_parsed(parsed, size)
            except SegmentationError as error:
                self.faults.add(error.kind, f"{where}: {error}")
                continue
            short_polygons += short
            masks += 1
            if are_normalised(parsed, size):
                normalised.append(f"{where}: {brief(parsed)}")
            pixels = int(coco_mask.area(mask))
            area, crowd = annotation.get("area"), annotation.get("iscrowd")
            if area is None:
                area = pixels
            if not is_number(area) or area < 0:
                self.faults.add(BAD_AREA, f"{where}: {brief(area)}")
                continue
            if crowd not in (None, 0, 1):
                self.faults.add("whose iscrowd is neither 0 nor 1", f"{where}: {brief(crowd)}")
                continue
            records.append(
                AnnotationRecord(
                    annotation["id"],
                    image_id,
                    category_id,
                    mask["counts"],
                    pixels,
                    float(area),
                    bool(crowd),
                )
            )
        # A single one may be a very small object in the corner of its image.
        if 2 * len(normalised) > masks:
            self.faults.places[NORMALISED] = normalised
        return CocoFile(
            self.path, kept, categories, records, listed, without_polygon, short_polygons,
            self.places,
        )  # fmt: skip

    def _identified(self, section: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """The records of a section that have an id of their own, and how to name them."""
        what = {"images": "image", "categories": "category", "annotations": "annotation"}[section]
        seen: set[int] = set()
        for number, record in enumerate(self.content[section]):
            where = f"{section}[{number}]"
            if not isinstance(record, dict) or type(record.get("id")) is not int:
                self.faults.add(
                    "without an integer id",
                    f"{where}: expected an object with an integer id, got {brief(record)}",
                )
            elif record["id"] in seen:
                of = f", image id {record.get('image_id')}" if section == "annotations" else ""
                self.faults.add(
                    "whose id occurs twice", f"{where}{of}: id {record['id']} occurs twice"
                )
            else:
                seen.add(record["id"])
                place = self.places.get(record["id"]) if section == "annotations" else None
                yield place or f"{what} id {record['id']}", record

    def _is(self, kind: type, value: Any, where: str) -> bool:
        if type(value) is kind:
            return True
        self.faults.add(
            "of the wrong kind", f"{where}: expected {kind.__name__}, got {brief(value)}"
        )
        return False


def _is_key(value: Any, records: dict[int, Any]) -> bool:
    return type(value) is int and value in records
