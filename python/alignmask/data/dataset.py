"""COCO-format instance segmentation data: images and masks loaded on demand.

Dimensions: N instances of one image, C = 3 colour channels, H x W pixels.
"""

from __future__ import annotations

import itertools
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from alignmask.data.batch import Sample, Size
from alignmask.data.coco_json import (
    ZERO_AREA,
    CocoError,
    CocoIndex,
    ImageRecord,
    fault,
    read_coco_json,
)
from alignmask.data.images import ImageError, read_image
from alignmask.data.masks import decode_rles, encode_segmentation

__all__ = ["CocoDataset", "CocoError", "read_coco_json"]


class CocoDataset(Dataset[Sample]):
    """Images and instance masks of a COCO-format data set.

    Labels are 0 .. classes - 1 in the order of the category ids, which may have gaps. Crowd
    annotations are not instances. Polygons of fewer than 3 points, and masks of zero area, are left
    out as the official tools do; `describe` counts them, and a warning reports them. Images without
    instances are kept.

    Args:
        images: Folder that the JSON's `file_name`s are relative to.
        annotations: The JSON file.
        transform: Is applied to every sample.
        limit: Number of images to keep, from the start of the JSON's list; None keeps all.
        masks: False gives samples without instances (prediction needs none, and decoding them takes
            time).

    Raises:
        CocoError: At once for every fault that can be seen in the JSON and in the folder's listing;
            when a sample is loaded for a fault of its image file or its polygons.
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
        index = CocoIndex(self.annotations, limit)
        self._find_missing_files(index.images)
        self._warn_left_out(index)

        self.category_ids: list[int] = index.category_ids
        """COCO's category id of every label."""
        self.class_names: list[str] = index.class_names
        self.image_ids = [image.id for image in index.images]
        self._skipped, self._short_polygons = index.skipped, index.short_polygons
        counts = [len(image.annotations) for image in index.images]
        self._first_instance = torch.tensor([0, *itertools.accumulate(counts)])
        # Zero area of a polygon shows when it is rasterised, in a worker process: the flags are
        # shared with it.
        self._zero_area = torch.zeros(sum(counts), dtype=torch.bool).share_memory_()
        # One buffer instead of millions of objects, whose reference counts would make every worker
        # copy their pages.
        records = [pickle.dumps(image, protocol=pickle.HIGHEST_PROTOCOL) for image in index.images]
        self._first_byte = torch.tensor([0, *itertools.accumulate(map(len, records))])
        self._records = b"".join(records)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The transformed sample. Raises IndexError, or CocoError for a damaged image or
        polygon."""
        sample = self.load(index)
        return sample if self.transform is None else self.transform(sample)

    def load(self, index: int) -> Sample:
        """The sample as it is stored, without the transform. Raises as `__getitem__`."""
        record = self._record(index)
        size = (record.height, record.width)
        path = self.images / record.file_name
        try:
            image_CHW = read_image(path)
        except ImageError as error:
            raise fault(self.annotations, str(error), record.id) from error
        if tuple(image_CHW.shape[1:]) != size:
            raise fault(
                self.annotations,
                f"{path}: the file has {image_CHW.shape[1]} x {image_CHW.shape[2]} pixels (height "
                "x width, EXIF "
                f"orientation not applied), the JSON says {size[0]} x {size[1]}",
                record.id,
            )
        if self.masks:
            masks_NHW, labels = self._decode(record, int(self._first_instance[index]))
        else:
            masks_NHW, labels = torch.zeros(0, *size, dtype=torch.bool), []
        return Sample(
            image_CHW=image_CHW,
            masks_NHW=masks_NHW,
            labels_N=torch.tensor(labels, dtype=torch.int64),
            image_id=record.id,
            file_name=record.file_name,
            original_size=size,
        )

    def file_name(self, index: int) -> str:
        """The image's file name in the JSON. Raises IndexError."""
        return self._record(index).file_name

    def size(self, index: int) -> Size:
        """Height and width in the annotation file."""
        record = self._record(index)
        return record.height, record.width

    def _record(self, index: int) -> ImageRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"CocoDataset: index {index} is outside 0 .. {len(self) - 1}")
        record: ImageRecord = pickle.loads(
            memoryview(self._records)[slice(*self._first_byte[index : index + 2])]
        )
        return record

    def describe(self) -> str:
        """One line: images, instances, classes, and what was left out by reason.

        Polygons of zero area are counted when they are loaded, in this process and in its
        data-loading workers.
        """
        empty = int(self._zero_area.sum())
        skipped = self._skipped + Counter({ZERO_AREA: empty})
        left_out = [f"{count} {reason}" for reason, count in sorted(skipped.items())]
        if self._short_polygons:
            left_out.append(f"{self._short_polygons} single polygons of fewer than 3 points")
        without = int((self._first_instance.diff() == 0).sum())
        return (
            f"{self.annotations}: {len(self)} images ({without} without instances), "
            f"{len(self._zero_area) - empty} instances of {len(self.class_names)} classes; "
            f"annotations left out: {', '.join(left_out) or 'none'}"
        )

    def _decode(self, record: ImageRecord, first_instance: int) -> tuple[Tensor, list[int]]:
        size = (record.height, record.width)
        rles = []
        for annotation in record.annotations:
            try:
                rles.append(encode_segmentation(annotation.segmentation, size))
            except ValueError as error:
                raise fault(self.annotations, str(error), record.id, annotation.id) from error
        empty = [number for number, rle in enumerate(rles) if coco_mask.area(rle) == 0]
        for number in empty:
            if not self._zero_area[first_instance + number]:
                self._zero_area[first_instance + number] = True
                text = f"annotation left out, {ZERO_AREA}"
                warnings.warn(
                    str(fault(self.annotations, text, record.id, record.annotations[number].id)),
                    stacklevel=4,
                )
        kept = [number for number in range(len(rles)) if number not in empty]
        masks_NHW = decode_rles([rles[number] for number in kept], size)
        return torch.from_numpy(masks_NHW), [record.annotations[number].label for number in kept]

    def _find_missing_files(self, images: Iterable[ImageRecord]) -> None:
        # One listing per folder: asking for each of 118,287 files takes minutes on a network file
        # system.
        listings: dict[Path, set[str]] = {}
        for image in images:
            path = self.images / image.file_name
            if path.parent not in listings:
                listings[path.parent] = (
                    set(os.listdir(path.parent)) if path.parent.is_dir() else set()
                )
            if path.name not in listings[path.parent] and not path.is_file():
                raise fault(self.annotations, f"{path}: image file does not exist", image.id)

    def _warn_left_out(self, index: CocoIndex) -> None:
        parts = [
            f"{index.skipped[reason]} {reason} (first: {first})"
            for reason, first in index.first_skipped.items()
        ]
        if index.short_polygons:
            parts.append(f"{index.short_polygons} single polygons of fewer than 3 points")
        if parts:
            warnings.warn(
                f"{self.annotations}: annotations left out: {'; '.join(parts)}", stacklevel=3
            )
