"""A COCO JSON file, checked and reduced to what training needs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from alignmask.data.masks import Segmentation, check_coverage, measure_counts, parse_segmentation

CROWD = "crowd"
NO_POLYGON = "without a polygon of 3 points or more"
ZERO_AREA = "with a mask of zero area"

_CHUNK = 4096  # RLEs checked together: bounds the memory


class CocoError(ValueError):
    """A fault in a COCO-format data set; the message names file, image id and annotation id as far
    as they apply."""


class AnnotationRecord(NamedTuple):
    id: int
    label: int
    segmentation: Segmentation


class ImageRecord(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    annotations: list[AnnotationRecord]


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


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """Parse a COCO JSON file; `images`, `annotations` and `categories` are checked to be lists.

    Raises CocoError, with line and column for malformed JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise fault(path, f"cannot read the annotation file: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise fault(
            path, f"malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise fault(path, f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise fault(path, "not a COCO file: its lists are nested too deeply") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise fault(path, f"expected a JSON object with a list {key!r}")
    return content


class CocoIndex:
    """The images of a COCO JSON file, in its order, with the instances that can be trained on.

    Args:
        limit: Number of images to keep, from the start of the list; None keeps all.

    Raises:
        CocoError: Any fault that can be seen without loading an image or rasterising a polygon.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        content = read_coco_json(path)
        self.category_ids, self.class_names = self._read_categories(content["categories"])
        self.skipped: Counter[str] = Counter()
        """Annotations left out, by reason."""
        self.first_skipped: dict[str, str] = {}
        """For every reason but CROWD, which one was the first."""
        self.short_polygons = 0
        """Polygons of fewer than 3 points left out of annotations that have others."""
        images = self._read_images(content["images"])
        kept = dict(itertools.islice(images.items(), limit))
        parsed = self._read_annotations(content["annotations"], images, kept)
        empty_ids = self._check_rles(parsed, kept)
        for image_id, annotation, crowd in parsed:
            if crowd:
                self.skipped[CROWD] += 1
            elif not annotation.segmentation:
                self._skip(NO_POLYGON, image_id, annotation.id)
            elif annotation.id in empty_ids:
                self._skip(ZERO_AREA, image_id, annotation.id)
            else:
                kept[image_id].annotations.append(annotation)
        self.images = list(kept.values())

    def _read_categories(self, categories: list[Any]) -> tuple[list[int], list[str]]:
        names: dict[int, str] = {}
        for number, category in enumerate(categories):
            where = f"categories[{number}]"
            category_id, name = (
                self._get(category, "id", int, where),
                self._get(category, "name", str, where),
            )
            if category_id in names:
                raise CocoError(f"{self.path}, {where}: category id {category_id} occurs twice")
            names[category_id] = name
        if not names:
            raise fault(self.path, "it lists no categories")
        return sorted(names), [names[category_id] for category_id in sorted(names)]

    def _read_images(self, images: list[Any]) -> dict[int, ImageRecord]:
        records: dict[int, ImageRecord] = {}
        for number, image in enumerate(images):
            where = f"images[{number}]"
            image_id = self._get(image, "id", int, where)
            where = f"image id {image_id}"
            height, width = (
                self._get(image, "height", int, where),
                self._get(image, "width", int, where),
            )
            if image_id in records:
                raise fault(self.path, "the image id occurs twice", image_id)
            if height < 1 or width < 1:
                raise fault(
                    self.path,
                    f"expected positive sides, got height {height}, width {width}",
                    image_id,
                )
            records[image_id] = ImageRecord(
                image_id, self._get(image, "file_name", str, where), height, width, []
            )
        if not records:
            raise fault(self.path, "it lists no images")
        return records

    def _read_annotations(
        self, annotations: list[Any], images: Container[int], kept: dict[int, ImageRecord]
    ) -> list[tuple[int, AnnotationRecord, bool]]:
        """Of the kept images: image id, annotation, whether it is a crowd."""
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        seen: set[int] = set()
        parsed = []
        for number, annotation in enumerate(annotations):
            annotation_id = self._get(annotation, "id", int, f"annotations[{number}]")
            where = f"annotation id {annotation_id}"
            image_id = self._get(annotation, "image_id", int, where)
            category_id = self._get(annotation, "category_id", int, where)
            if annotation_id in seen:
                raise fault(self.path, "the annotation id occurs twice", image_id, annotation_id)
            seen.add(annotation_id)
            if image_id not in images:
                raise fault(
                    self.path, "the image id is not among the images", image_id, annotation_id
                )
            if category_id not in labels:
                text = f"category id {category_id} is not among the categories"
                raise fault(self.path, text, image_id, annotation_id)
            if image_id not in kept:
                continue
            _, _, height, width, _ = kept[image_id]
            try:
                segmentation, short = parse_segmentation(
                    annotation.get("segmentation"), (height, width)
                )
            except ValueError as error:
                raise fault(self.path, str(error), image_id, annotation_id) from error
            self.short_polygons += short if segmentation else 0
            record = AnnotationRecord(annotation_id, labels[category_id], segmentation)
            parsed.append((image_id, record, bool(annotation.get("iscrowd", 0))))
        return parsed

    def _check_rles(
        self, parsed: list[tuple[int, AnnotationRecord, bool]], kept: dict[int, ImageRecord]
    ) -> set[int]:
        """Check all compressed RLEs; returns the annotation ids of those that set no pixel."""
        rles = [
            (image, a.id, a.segmentation)
            for image, a, _ in parsed
            if isinstance(a.segmentation, bytes)
        ]
        empty_ids: set[int] = set()
        for first in range(0, len(rles), _CHUNK):
            chunk = rles[first : first + _CHUNK]
            covered, areas = measure_counts([counts for _, _, counts in chunk])
            for (image_id, annotation_id, counts), cover, area in zip(
                chunk, covered, areas, strict=True
            ):
                try:
                    check_coverage(
                        counts, int(cover), (kept[image_id].height, kept[image_id].width)
                    )
                except ValueError as error:
                    raise fault(self.path, str(error), image_id, annotation_id) from error
                if area == 0:
                    empty_ids.add(annotation_id)
        return empty_ids

    def _skip(self, reason: str, image_id: int, annotation_id: int) -> None:
        self.skipped[reason] += 1
        self.first_skipped.setdefault(reason, f"image id {image_id}, annotation id {annotation_id}")

    def _get(self, record: Any, key: str, kind: type, where: str) -> Any:
        if not isinstance(record, dict) or key not in record:
            raise CocoError(f"{self.path}, {where}: {key} is missing")
        if type(record[key]) is not kind:
            raise CocoError(
                f"{self.path}, {where}: {key}: expected {kind.__name__}, got {record[key]!r}"
            )
        return record[key]
