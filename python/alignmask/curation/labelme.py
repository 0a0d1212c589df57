"""LabelMe's format, from and to COCO's: a JSON file per image with its shapes.

Libraries that read it take polygons and rectangles alone, and round their points to whole pixels.
Here circles and masks are read, too; masks with holes are written as masks.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignmask._files import must_be_new, new_folder, write_json
from alignmask.curation.drafts import (
    Instance,
    Shapes,
    clipped,
    ellipse,
    files_of,
    instances_of,
    write_draft,
)
from alignmask.data.batch import Size
from alignmask.data.draft import Draft
from alignmask.data.faults import CocoError, Faults, brief, is_number
from alignmask.data.file_names import find_files
from alignmask.data.images import ImageError, read_header
from alignmask.data.records import ImageRecord

VERSION = "5.5.0"
"""Of LabelMe, whose files these are like: the first versions with masks are older."""
WITHOUT_AREA = ("line", "linestrip", "point", "points")
OUTSIDE = "whose image is outside of the images' folder"
KINDS = ("polygon", "rectangle", "circle", "mask", "oriented_rectangle")


def convert_labelme(
    folder: Path,
    out: Path,
    images: Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    extract: Path | None = None,
) -> Counter[str]:
    """Write the COCO file of the LabelMe files in a folder and its subfolders; returns what was
    read and left out, counted.

    Shapes of one image with the same label and the same group_id are one instance.

    Args:
        out: The file to write. Must not exist.
        images: What file names in the COCO file are relative to; by default `folder`. All images
            must be in it, or in subfolders.
        classes: The names of the classes, in the order of their ids; None takes the labels that
            occur, sorted.
        extract: Write the images that are embedded in the files (imageData) to this folder, which
            must not exist, and have file names relative to it.

    Raises:
        FileExistsError: `out` or `extract` exists.
        CocoError: Files or shapes are not of the format, or images are missing, or outside of
            their folder; all are counted.
    """
    must_be_new(out, "data")
    if extract is not None:
        must_be_new(extract, "data")
    if not folder.is_dir():
        raise CocoError(f"{folder}: no such folder")
    reader = _Reader(folder, images or folder, Draft(classes), embedded=extract is not None)
    for path in sorted(folder.rglob("*.json")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            reader.read(path)
    if not reader.draft.images and not reader.draft.faults:
        raise CocoError(f"{folder}: no LabelMe file in it: JSON files with `shapes`")
    if extract is None:
        return write_draft(folder, reader.draft, out)
    with new_folder(extract) as part:
        for name, data in reader.pictures.items():
            (part / name).write_bytes(data)
        return write_draft(folder, reader.draft, out)


class _Reader:
    def __init__(self, folder: Path, images: Path, draft: Draft, *, embedded: bool) -> None:
        self.folder, self.images, self.draft, self.embedded = folder, images, draft, embedded
        self.pictures: dict[str, bytes] = {}
        self._owner: dict[str, Path] = {}
        self._outside: list[Path] = []

    def read(self, path: Path) -> None:
        faults = self.draft.faults
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            faults.add("of JSON files that cannot be read", f"{path}: {error}")
            return
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            self.draft.counts["JSON files without shapes left out"] += 1
            return
        named = content.get("imagePath")
        if not isinstance(named, str) or not named:
            faults.add("of files without an imagePath", f"{path}: {brief(named)}")
            return
        name = self._extracted(path, content, named) if self.embedded else self._found(path, named)
        if name is None:
            return
        if name in self._owner:
            faults.add("of images with two files", f"{path} and {self._owner[name]}: {name}")
            return
        self._owner[name] = path
        size = self._size(path, content, name)
        if size is not None:
            self._shapes(path, content["shapes"], self.draft.add_image(name, size), size)

    def _found(self, path: Path, named: str) -> str | None:
        """The image's name relative to the images' folder."""
        plain = named.replace("\\", "/")
        for place in (path.parent / plain, path.parent / plain.rpartition("/")[2]):
            if place.is_file():
                return self._inside(path, place.resolve())
        missing = Faults()
        (name,), _ = find_files(self.images, [plain], [str(path)], missing)
        if missing:
            self.draft.faults.update(missing)
            self.draft.faults.notes |= {
                "whose file does not exist": "name the folder of the images with --images; if they "
                "are in the JSON files themselves, --extract writes them to a folder"
            }
            return None
        return name

    def _inside(self, path: Path, place: Path) -> str | None:
        """The name of an image relative to the images' folder. One outside of it is a fault:
        readers of the COCO file would not follow its name."""
        root = self.images.resolve()
        if place.is_relative_to(root):
            return place.relative_to(root).as_posix()
        self._outside.append(place)
        common = Path(os.path.commonpath([root, *(file.parent for file in self._outside)]))
        self.draft.faults.add(OUTSIDE, f"{path}: {place}")
        self.draft.faults.notes[OUTSIDE] = (
            f"file names are relative to {self.images}: name a folder that has all images with "
            f"--images {common}"
        )
        return None

    def _extracted(self, path: Path, content: dict[str, Any], named: str) -> str | None:
        try:
            data = base64.b64decode(content.get("imageData") or "", validate=True)
            with Image.open(io.BytesIO(data)) as image:
                suffix = f".{(image.format or '').lower()}".replace(".jpeg", ".jpg")
        except (binascii.Error, TypeError, ValueError, OSError) as error:
            self.draft.faults.add("without an image in imageData", f"{path}: {brief(str(error))}")
            return None
        stem = path.relative_to(self.folder).with_suffix("").as_posix().replace("/", "_")
        self.pictures[stem + suffix] = data
        return stem + suffix

    def _size(self, path: Path, content: dict[str, Any], name: str) -> Size | None:
        said = content.get("imageHeight"), content.get("imageWidth")
        known = all(type(side) is int and side > 0 for side in said)
        try:
            if self.embedded:
                with Image.open(io.BytesIO(self.pictures[name])) as image:
                    size = (image.height, image.width)
            else:
                size = read_header(self.images / name, said if known else None).size  # type: ignore[arg-type]
        except ImageError as error:
            self.draft.faults.add("that cannot be read", f"{path}: {error}")
            return None
        if known and size != said:
            self.draft.faults.add(
                "whose file has another size",
                f"{path}: {name} has {size[0]} x {size[1]} pixels (height x width), the JSON says "
                f"{said[0]} x {said[1]}",
            )
            return None
        return size

    def _shapes(self, path: Path, shapes: list[Any], image_id: int, size: Size) -> None:
        found = Shapes(image_id, size)
        for number, shape in enumerate(shapes):
            where = f"{path}: shapes[{number}]"
            region = self._region(shape, where, size)
            if region is not None:
                found.add(shape["label"], shape.get("group_id"), region, where)
        found.add_to(self.draft)

    def _region(self, shape: Any, where: str, size: Size) -> Any:
        """A polygon [x, y, x, y, ...], a mask [H, W], or None."""
        faults = self.draft.faults
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            faults.add("of shapes without a label", f"{where}: {brief(shape)}")
            return None
        kind = shape.get("shape_type") or "polygon"
        if kind in WITHOUT_AREA:
            self.draft.counts["lines and points left out"] += 1
            return None
        if kind not in KINDS:
            faults.add(
                "of shapes of an unknown kind",
                f"{where}: {brief(kind)}, expected one of {', '.join((*KINDS, *WITHOUT_AREA))}",
            )
            return None
        points = shape.get("points")
        if not isinstance(points, list) or not all(
            isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points
        ):
            faults.add(
                "of shapes whose points are not pairs of numbers", f"{where}: {brief(points)}"
            )
            return None
        if kind in ("circle", "mask") and len(points) != 2:
            faults.add(
                "of shapes with another number of points",
                f"{where}: a {kind} has 2, got {len(points)}",
            )
            return None
        if kind == "mask":
            return self._mask(shape.get("mask"), points, where, size)
        if kind == "circle":
            (x, y), (edge_x, edge_y) = points
            radius = math.hypot(edge_x - x, edge_y - y)
            return ellipse((x, y), (radius, radius))
        if kind == "rectangle" and len(points) == 2:
            (left, top), (right, bottom) = points
            return [left, top, right, top, right, bottom, left, bottom]
        return [value for point in points for value in point]

    def _mask(self, encoded: Any, points: list[Any], where: str, size: Size) -> Any:
        try:
            with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
                mask_HW = np.asarray(image.convert("L")) > 0
        except (binascii.Error, TypeError, ValueError, OSError) as error:
            self.draft.faults.add(
                "of masks that are no PNG in base64", f"{where}: {brief(str(error))}"
            )
            return None
        (left, top), (right, bottom) = [[round(value) for value in point] for point in points]
        if mask_HW.shape != (bottom - top + 1, right - left + 1):
            self.draft.faults.add(
                "of masks of another size than their points say",
                f"{where}: {mask_HW.shape[0]} x {mask_HW.shape[1]} pixels (height x width), the "
                f"points say {bottom - top + 1} x {right - left + 1}",
            )
            return None
        return clipped(mask_HW, left, top, size)


def write_labelme(annotations: Path, out: Path, images: Path | None = None) -> Counter[str]:
    """Write a LabelMe file for every image; returns what was written and left out, counted.

    Polygons stay as they are. Masks become polygons along the edges of their pixels; those with
    holes become shapes of the kind `mask`, which is exact. Parts of an instance have one group_id.

    Args:
        out: The folder to write. Must not exist.
        images: Folder of the images; None has file names as the annotation file has them.

    Raises:
        FileExistsError: `out` exists.
        CocoError: As `read_coco`; or images are missing, or two would have one file.
    """
    must_be_new(out, "data")
    counts: Counter[str] = Counter()
    file, found = instances_of(annotations, counts)
    targets = files_of(file, ".json")
    names = _image_paths(file.images, targets, images, out)
    with new_folder(out) as part:
        for image in file.images.values():
            size = (image.height, image.width)
            shapes = []
            for number, instance in enumerate(found[image.id]):
                shapes += _written(instance, number, size, counts)
            content: dict[str, Any] = {
                "version": VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": names[image.id],
                "imageData": None,
                "imageHeight": image.height,
                "imageWidth": image.width,
            }
            write_json(part / targets[image.id], content, indent=2)
    return +counts


def _image_paths(
    records: dict[int, ImageRecord], targets: dict[int, str], images: Path | None, out: Path
) -> dict[int, str]:
    """By image id: what a LabelMe file calls its image, relative to itself."""
    names = [image.file_name or "" for image in records.values()]
    if images is None:
        return dict(zip(records, names, strict=True))
    faults = Faults()
    found, _ = find_files(images, names, [f"image id {image_id}" for image_id in records], faults)
    faults.raise_if_any(str(images), "images")
    return {
        image.id: Path(
            os.path.relpath((images / name).resolve(), (out / targets[image.id]).parent.resolve())
        ).as_posix()
        for image, name in zip(records.values(), found, strict=True)
    }


def _written(
    instance: Instance, number: int, size: Size, counts: Counter[str]
) -> list[dict[str, Any]]:
    polygons = instance.as_polygons(size)
    common: dict[str, Any] = {
        "label": instance.name,
        "group_id": None,
        "description": "",
        "flags": {},
    }
    if polygons is not None:
        group = number if len(polygons) > 1 else None
        return [
            {
                **common,
                "points": [[x, y] for x, y in zip(polygon[::2], polygon[1::2], strict=True)],
                "group_id": group,
                "shape_type": "polygon",
                "mask": None,
            }
            for polygon in polygons
        ]
    counts["masks with holes, as shapes of the kind mask"] += 1
    mask_HW, left, top = instance.cropped(size)
    right, bottom = left + mask_HW.shape[1] - 1, top + mask_HW.shape[0] - 1
    picture = io.BytesIO()
    Image.fromarray(mask_HW).save(picture, format="PNG")
    return [
        {
            **common,
            "points": [[float(left), float(top)], [float(right), float(bottom)]],
            "shape_type": "mask",
            "mask": base64.b64encode(picture.getvalue()).decode(),
        }
    ]
