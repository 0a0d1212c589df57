"""COCO-format instance segmentation data: images and masks loaded on demand.

Dimensions: N instances of one image, C = 3 colour channels, H x W pixels.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from alignmask._printing import counted
from alignmask.data.batch import Sample, Size
from alignmask.data.coco_json import fault, read_coco, read_coco_json
from alignmask.data.faults import CAUSES, CROWD, NO_POLYGON, ZERO_AREA, CocoError, Faults
from alignmask.data.file_names import find_files
from alignmask.data.images import (
    Exif,
    FewBitsWarning,
    Header,
    ImageError,
    SampleRange,
    read_header,
    read_image,
)
from alignmask.data.masks import decode_rles
from alignmask.data.records import CocoFile

__all__ = ["CocoDataset", "CocoError", "read_coco_json"]

_HEADERS = 20_000  # of which the size is compared at the start; a data set of COCO's size has more
_DEEP_IMAGES = 8  # of 16 bits, that are decoded at the start


class _Stored(NamedTuple):
    """An image with the masks that are its instances."""

    id: int
    file_name: str
    found: str
    """The file's name below the images' folder, where that differs from the JSON's."""
    height: int
    width: int
    labels: list[int]
    counts: list[bytes]


class CocoDataset(Dataset[Sample]):
    """Images and instance masks of a COCO-format data set.

    Labels are 0 .. classes - 1 in the order of the category ids, which may have gaps. Crowd
    annotations are not instances. Polygons of fewer than 3 points, and masks of zero area, are left
    out as the official tools do; `describe` counts them, and a warning reports them. Images without
    instances are kept.

    Args:
        images: Folder that the JSON's `file_name`s are relative to (`find_files` says what else is
            tried).
        annotations: The JSON file, or a folder of YOLO labels.
        transform: Is applied to every sample.
        limit: Number of images to keep, from the start of the JSON's list; None keeps all.
        masks: False gives samples without instances (prediction needs none, and decoding them takes
            time).
        exif, sample_range: As in `read_image`. "auto" turns an image upright wherever the JSON's
            size fits that.

    Raises:
        CocoError: At once for every fault that can be seen in the JSON, in the folder's listing and
            in the first bytes of the image files (of 20,000 of them, if there are more); when a
            sample is loaded for damage that only decoding its image shows.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transform: Callable[[Sample], Sample] | None = None,
        limit: int | None = None,
        masks: bool = True,
        *,
        exif: Exif = "auto",
        sample_range: SampleRange | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"CocoDataset: limit: expected None or at least 1, got {limit}")
        if sample_range is not None and not sample_range[0] < sample_range[1]:
            raise ValueError(
                f"CocoDataset: sample_range: expected black below white, got {sample_range}"
            )
        self.images, self.annotations = Path(images), Path(annotations)
        self.transform, self.masks = transform, masks
        self.exif, self.sample_range = exif, sample_range
        file = read_coco(self.annotations, limit, self.images)
        self.category_ids = list(file.categories)
        """COCO's category id of every label."""
        self.class_names = list(file.categories.values())
        self.image_ids = list(file.images)
        self.left_out: Counter[str] = Counter()
        """Annotations that are not instances, by reason."""
        self.listed = file.listed
        """Number of annotations that the file has of these images."""
        self._short_polygons = file.short_polygons

        faults = Faults()
        stored = self._find_files(self._instances(file), faults)
        self._turned = self._look_at_headers(stored, faults)
        faults.raise_if_any(str(self.annotations), f"images in {self.images}")

        counts = [len(image.labels) for image in stored]
        self.instances_per_image = torch.tensor(counts)
        """int64 [images]."""
        # One buffer instead of millions of objects, whose reference counts would make every worker
        # copy their pages.
        records = [pickle.dumps(image, protocol=pickle.HIGHEST_PROTOCOL) for image in stored]
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
        path = self.images / (record.found or record.file_name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FewBitsWarning)  # it was said at the start
                image_CHW = read_image(path, size, exif=self.exif, sample_range=self.sample_range)
        except ImageError as error:
            raise fault(self.annotations, str(error), record.id) from error
        if tuple(image_CHW.shape[1:]) != size:
            raise fault(
                self.annotations,
                f"{path}: the file has {image_CHW.shape[1]} x {image_CHW.shape[2]} pixels (height "
                f"x width), the JSON says {size[0]} x {size[1]}",
                record.id,
            )
        kept = len(record.labels) if self.masks else 0
        rles = [{"size": list(size), "counts": counts} for counts in record.counts[:kept]]
        return Sample(
            image_CHW=image_CHW,
            masks_NHW=torch.from_numpy(decode_rles(rles, size)),
            labels_N=torch.tensor(record.labels[:kept], dtype=torch.int64),
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

    def _record(self, index: int) -> _Stored:
        if not 0 <= index < len(self):
            raise IndexError(f"CocoDataset: index {index} is outside 0 .. {len(self) - 1}")
        record: _Stored = pickle.loads(
            memoryview(self._records)[slice(*self._first_byte[index : index + 2])]
        )
        return record

    def describe(self) -> str:
        """One line: images, instances, classes, and what was left out by reason."""
        left_out = [f"{count} {reason}" for reason, count in sorted(self.left_out.items())]
        if self._short_polygons:
            left_out.append(_single_polygons(self._short_polygons))
        without = int((self.instances_per_image == 0).sum())
        turned = f"{counted(self._turned, 'image')} turned upright; " if self._turned else ""
        return (
            f"{self.annotations}: {counted(len(self), 'image')} ({without} without instances), "
            f"{counted(int(self.instances_per_image.sum()), 'instance')} of "
            f"{counted(len(self.class_names), 'class', 'classes')}; {turned}"
            f"annotations left out: {', '.join(left_out) or 'none'}"
        )

    def require_instances(self) -> None:
        """Raises CocoError, with the likely cause, if there is nothing to train on."""
        if self.instances_per_image.any():
            return
        reasons = [
            f"\n  {count} {reason}: {CAUSES[reason]}" for reason, count in self.left_out.items()
        ]
        what = (
            f"{counted(self.listed, 'annotation')}, none of which is an instance:{''.join(reasons)}"
            if self.listed
            else "no annotations: it may have been exported before the images were labelled"
        )
        raise CocoError(f"{self.annotations}: there is nothing to train on. It has {what}")

    def _instances(self, file: CocoFile) -> list[_Stored]:
        """The images with their instances. Counts the other annotations, and warns of them."""
        stored = {
            image.id: _Stored(
                image.id, image.file_name or "", "", image.height, image.width, [], []
            )
            for image in file.images.values()
        }
        labels = {category_id: label for label, category_id in enumerate(file.categories)}
        places: dict[str, list[str]] = {}
        sizes: list[tuple[int, int, int]] = []
        if file.without_polygon:
            places[NO_POLYGON] = file.without_polygon
        for annotation in file.annotations:
            if not annotation.is_instance:
                reason = CROWD if annotation.crowd else ZERO_AREA
                places.setdefault(reason, []).append(file.where(annotation))
            else:
                image = stored[annotation.image_id]
                image.labels.append(labels[annotation.category_id])
                image.counts.append(annotation.counts)
                sizes.append((annotation.pixels, image.height, image.width))
        size_N3 = torch.tensor(sizes, dtype=torch.float32).reshape(-1, 3)
        self.instance_sizes_N3 = torch.cat(
            (size_N3[:, :1].sqrt(), size_N3[:, 1:].sort(dim=1).values), dim=1
        )
        """float32 [instances, 3], pixels: the root of the mask's area, and the shorter and the
        longer side of its image."""
        self.left_out.update({reason: len(where) for reason, where in places.items()})
        # Some crowds are what COCO's own files have.
        many = 2 * self.left_out.total() > file.listed
        parts = [
            f"{len(where)} {reason} (first: {where[0]})" + (f": {CAUSES[reason]}" if many else "")
            for reason, where in places.items()
            if many or reason != CROWD
        ]
        if file.short_polygons:
            parts.append(_single_polygons(file.short_polygons))
        if parts:
            warnings.warn(
                f"{file.path}: annotations left out, of {file.listed}: {'; '.join(parts)}",
                stacklevel=3,
            )
        return list(stored.values())

    def _find_files(self, stored: list[_Stored], faults: Faults) -> list[_Stored]:
        for image in stored:
            if not image.file_name:
                faults.add("without a file_name", f"image id {image.id}")
        named = [image for image in stored if image.file_name]
        found, renamed = find_files(
            self.images,
            [image.file_name for image in named],
            [f"image id {image.id}" for image in named],
            faults,
        )
        if renamed:
            warnings.warn(f"{self.annotations}: {renamed}", stacklevel=3)
        faults.raise_if_any(str(self.annotations), f"images in {self.images}")
        return [
            image._replace(found="" if file == image.file_name else file)
            for image, file in zip(named, found, strict=True)
        ]

    def _look_at_headers(self, stored: list[_Stored], faults: Faults) -> int:
        """Compare the files' sizes with the JSON's; returns how many are turned upright. Warns of
        these, and of 16-bit images that would be nearly black."""
        looked_at = stored[:: -(-len(stored) // _HEADERS)]
        paths = [self.images / (image.found or image.file_name) for image in looked_at]

        def header(image: _Stored, path: Path) -> Header | ImageError:
            try:
                return read_header(path, (image.height, image.width), exif=self.exif)
            except ImageError as error:
                return error

        with ThreadPoolExecutor(8) as pool:  # most of the time is waiting for the file system
            headers = list(pool.map(header, looked_at, paths))
        turned, deep = [], []
        for image, path, found in zip(looked_at, paths, headers, strict=True):
            size = (image.height, image.width)
            if isinstance(found, ImageError):
                faults.add("that cannot be read", f"image id {image.id}: {found}")
            elif found.unranged and self.sample_range is None:
                faults.add(
                    "with 32 bits a sample",
                    f"image id {image.id}: {path}: set data.sample_range to the values of black "
                    "and white",
                )
            elif found.size != size:
                faults.add(
                    "whose file has another size",
                    f"image id {image.id}: {path}: the file has {found.stored[0]} x "
                    f"{found.stored[1]} pixels (height x width{_upright_size(found)}), the JSON "
                    f"says {size[0]} x {size[1]}",
                )
            else:
                turned += [path] * found.turned
                deep += [path] * found.deep
        if turned:
            of = f"the {len(looked_at)} looked at" if len(looked_at) < len(stored) else len(stored)
            warnings.warn(
                f"{self.annotations}: {counted(len(turned), 'image')} of {of} turned upright, as "
                f"EXIF's orientation says (data.exif {self.exif}); first: {turned[0]}",
                stacklevel=3,
            )
        if deep and not faults:
            self._warn_few_bits(deep)
        return len(turned)

    def _warn_few_bits(self, deep: list[Path]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewBitsWarning)
            for path in deep[:_DEEP_IMAGES]:
                with contextlib.suppress(ImageError):  # it is said when its turn comes
                    read_image(path, exif=self.exif, sample_range=self.sample_range)
        dark = [m for entry in caught if isinstance(m := entry.message, FewBitsWarning)]
        if dark:
            warnings.warn(
                f"{self.annotations}: {counted(len(deep), 'image')} with 16 bits a sample; "
                f"{len(dark)} of the {min(len(deep), _DEEP_IMAGES)} looked at: "
                f"{max(dark, key=lambda message: message.top)} "
                f"(first: {deep[0]})",
                FewBitsWarning,
                stacklevel=4,
            )


def _upright_size(header: Header) -> str:
    if header.size == header.stored:
        return ""
    return f"; {header.size[0]} x {header.size[1]} turned upright"


def _single_polygons(number: int) -> str:
    return counted(number, "single polygon") + " of fewer than 3 points"
