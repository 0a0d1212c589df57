"""COCO-format instance segmentation data: an index of the JSON file, images and masks loaded on demand.

Dimensions: N instances of one image, C = 3 colour channels, H x W pixels.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from alignmask.data.batch import Sample
from alignmask.data.images import ImageError, read_image
from alignmask.data.masks import Segmentation, decode_rles, encode_segmentation, parse_segmentation

CROWD = "crowd"
NO_POLYGON = "no polygon of 3 points or more"
ZERO_AREA = "zero-area mask"


class CocoError(ValueError):
    """A fault in a COCO-format data set; the message names file, image id and annotation id as far as they apply."""


class _Annotation(NamedTuple):
    id: int
    label: int
    segmentation: Segmentation
    number: int
    """Position among the data set's instances."""


class _Image(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    annotations: list[_Annotation]


class CocoDataset(Dataset[Sample]):
    """Images and instance masks of a COCO-format data set.

    Category ids may have gaps: labels are 0 .. classes - 1 in the order of the ids. Crowd annotations are no
    instances. As the official tools do, annotations without a polygon of at least 3 points and masks of zero area are
    left out; `describe` counts them and a warning tells of them. Images without instances stay.

    images: folder that the JSON's `file_name`s are relative to.
    annotations: the JSON file.
    transform: applied to every sample.
    limit: keep the first so many images of the JSON's list only.
    masks: False gives samples without instances (prediction needs none, and decoding costs time).

    Raises CocoError at once for every fault that the JSON or the folder's listing shows, and when a sample is loaded
    for those that only its image file or its mask shows.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transform: Callable[[Sample], Sample] | None = None,
        limit: int | None = None,
        masks: bool = True,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"CocoDataset: limit: expected None or at least 1, got {limit}")
        self.images, self.annotations = Path(images), Path(annotations)
        self.transform, self.masks = transform, masks
        content = read_coco_json(self.annotations)
        self.category_ids, self.class_names = self._read_categories(content["categories"])
        self.skipped: Counter[str] = Counter()
        """Annotations left out, by reason, as far as the JSON tells."""
        self._examples: dict[str, str] = {}
        records = self._read_images(content["images"], limit)
        self._read_annotations(content["annotations"], records, {image.get("id") for image in content["images"]})
        self._find_missing_files(records.values())
        self._warn_skipped()

        self.image_ids = list(records)
        self.instances = sum(len(record.annotations) for record in records.values())
        self._without_instances = sum(not record.annotations for record in records.values())
        # One buffer instead of millions of Python objects: reference counts would make every worker process copy them.
        pickled = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records.values()]
        self._offsets = torch.tensor([0, *itertools.accumulate(map(len, pickled))])
        self._buffer = b"".join(pickled)
        # Zero area shows only when a mask is decoded, which happens in workers: the flags are shared with them.
        self._zero_area = torch.zeros(self.instances, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The transformed sample. Raises IndexError, or CocoError for a damaged image or mask."""
        sample = self.load(index)
        return sample if self.transform is None else self.transform(sample)

    def load(self, index: int) -> Sample:
        """The sample as it is stored, without the transform. Raises as `__getitem__`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"CocoDataset: index {index} is outside 0 .. {len(self) - 1}")
        index %= len(self)
        record: _Image = pickle.loads(memoryview(self._buffer)[self._offsets[index] : self._offsets[index + 1]])
        size = (record.height, record.width)
        try:
            image_CHW = read_image(self.images / record.file_name)
        except ImageError as error:
            raise self._error(str(error), image=record.id) from error
        if tuple(image_CHW.shape[1:]) != size:
            raise self._error(
                f"{self.images / record.file_name}: the file has {image_CHW.shape[1]} x {image_CHW.shape[2]} pixels "
                f"(height x width, EXIF orientation not applied), the JSON says {size[0]} x {size[1]}",
                image=record.id,
            )
        masks_NHW, labels = self._decode(record) if self.masks else (torch.zeros(0, *size, dtype=torch.bool), [])
        return Sample(
            image_CHW=image_CHW,
            masks_NHW=masks_NHW,
            labels_N=torch.tensor(labels, dtype=torch.int64),
            image_id=record.id,
            file_name=record.file_name,
            original_size=size,
        )

    def describe(self) -> str:
        """One line: images, instances, classes, and the annotations left out by reason.

        Zero-area masks are counted as they are met, in this process and in its data-loading workers.
        """
        skipped = self.skipped + Counter({ZERO_AREA: int(self._zero_area.sum())})
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
        return (
            f"{self.annotations}: {len(self)} images ({self._without_instances} without instances), "
            f"{self.instances} instances of {len(self.class_names)} classes; annotations left out: {left_out}"
        )

    def _decode(self, record: _Image) -> tuple[torch.Tensor, list[int]]:
        size = (record.height, record.width)
        rles = []
        for annotation in record.annotations:
            try:
                rles.append(encode_segmentation(annotation.segmentation, size))
            except ValueError as error:
                raise self._error(str(error), image=record.id, annotation=annotation.id) from error
        masks_NHW = torch.from_numpy(decode_rles(rles, size))
        visible = masks_NHW.flatten(1).any(1).tolist() if rles else []
        for annotation, keep in zip(record.annotations, visible, strict=True):
            if not keep and not self._zero_area[annotation.number]:
                self._zero_area[annotation.number] = True
                message = self._error(f"left out: {ZERO_AREA}", image=record.id, annotation=annotation.id)
                warnings.warn(str(message), stacklevel=2)
        labels = [annotation.label for annotation, keep in zip(record.annotations, visible, strict=True) if keep]
        return masks_NHW if all(visible) else masks_NHW[torch.tensor(visible)], labels

    def _read_categories(self, categories: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
        names: dict[int, str] = {}
        for number, category in enumerate(categories):
            where = f"categories[{number}]"
            category_id, name = self._get(category, "id", int, where), self._get(category, "name", str, where)
            if category_id in names:
                raise self._error(f"{where}: category id {category_id} occurs twice")
            names[category_id] = name
        if not names:
            raise self._error("lists no categories")
        ids = sorted(names)
        return ids, [names[category_id] for category_id in ids]

    def _read_images(self, images: list[dict[str, Any]], limit: int | None) -> dict[int, _Image]:
        records: dict[int, _Image] = {}
        for number, image in enumerate(images):
            where = f"images[{number}]"
            image_id = self._get(image, "id", int, where)
            where += f" (image id {image_id})"
            if image_id in records:
                raise self._error(f"{where}: image id {image_id} occurs twice")
            height, width = (self._get(image, key, int, where) for key in ("height", "width"))
            if height < 1 or width < 1:
                raise self._error(f"{where}: expected positive sides, got height {height}, width {width}")
            records[image_id] = _Image(image_id, self._get(image, "file_name", str, where), height, width, [])
        if not records:
            raise self._error("lists no images")
        return dict(itertools.islice(records.items(), limit))

    def _read_annotations(
        self, annotations: list[dict[str, Any]], records: dict[int, _Image], known_images: set[int]
    ) -> None:
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        seen: set[int] = set()
        kept: defaultdict[int, int] = defaultdict(int)
        for number, annotation in enumerate(annotations):
            where = f"annotations[{number}]"
            annotation_id = self._get(annotation, "id", int, where)
            where = f"annotation id {annotation_id}"
            image_id = self._get(annotation, "image_id", int, where)
            if annotation_id in seen:
                raise self._error("the annotation id occurs twice", image=image_id, annotation=annotation_id)
            seen.add(annotation_id)
            if image_id not in known_images:
                raise self._error("the image id is not among the images", image=image_id, annotation=annotation_id)
            category_id = self._get(annotation, "category_id", int, where)
            if category_id not in labels:
                raise self._error(
                    f"category id {category_id} is not among the categories", image=image_id, annotation=annotation_id
                )
            if (record := records.get(image_id)) is None:
                continue  # beyond the limit
            if "segmentation" not in annotation:
                raise self._error("segmentation is missing", image=image_id, annotation=annotation_id)
            try:
                segmentation, short = parse_segmentation(annotation["segmentation"], (record.height, record.width))
            except ValueError as error:
                raise self._error(str(error), image=image_id, annotation=annotation_id) from error
            if annotation.get("iscrowd", 0):
                self.skipped[CROWD] += 1
            elif not segmentation:
                self._skip(NO_POLYGON, image_id, annotation_id)
            else:
                record.annotations.append(_Annotation(annotation_id, labels[category_id], segmentation, len(kept)))
                kept[annotation_id] = short

    def _find_missing_files(self, records: Iterable[_Image]) -> None:
        # One listing per folder: asking for each of 118,287 files takes minutes on a network file system.
        listings: dict[Path, set[str]] = {}
        for record in records:
            path = self.images / record.file_name
            if path.parent not in listings:
                listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in listings[path.parent] and not path.is_file():
                raise self._error(f"{path}: image file does not exist", image=record.id)

    def _skip(self, reason: str, image_id: int, annotation_id: int) -> None:
        self.skipped[reason] += 1
        self._examples.setdefault(reason, f"image id {image_id}, annotation id {annotation_id}")

    def _warn_skipped(self) -> None:
        if self._examples:
            parts = (f"{self.skipped[reason]} x {reason} (first: {first})" for reason, first in self._examples.items())
            warnings.warn(f"{self.annotations}: annotations left out: {'; '.join(parts)}", stacklevel=3)

    def _get(self, record: Any, key: str, kind: type, where: str) -> Any:
        if not isinstance(record, dict) or key not in record:
            raise self._error(f"{where}: {key} is missing")
        if type(record[key]) is not kind:
            raise self._error(f"{where}: {key}: expected {kind.__name__}, got {record[key]!r}")
        return record[key]

    def _error(self, text: str, image: int | None = None, annotation: int | None = None) -> CocoError:
        where = [str(self.annotations)]
        if image is not None:
            where.append(f"image id {image}")
        if annotation is not None:
            where.append(f"annotation id {annotation}")
        return CocoError(": ".join([", ".join(where), text]))


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """Parse a COCO JSON file; `images`, `annotations` and `categories` are sure to be lists.

    Raises CocoError, with line and column for malformed JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise CocoError(f"{path}: cannot read the annotation file: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise CocoError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise CocoError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise CocoError(f"{path}: expected a JSON object with a list {key!r}")
    return content
