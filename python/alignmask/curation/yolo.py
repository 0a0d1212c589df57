"""YOLO's segmentation format: a text file per image with `class x y x y ...` in shares of the
image's width and height, and data.yaml with the names of the classes.

The format has no holes and no instances of several parts: each part becomes a polygon of its own
when it is written, which is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from alignmask._files import must_be_new, write_json
from alignmask.data.coco_json import read_coco
from alignmask.data.faults import CocoError, Faults, brief
from alignmask.data.images import ImageError, read_header
from alignmask.data.outlines import outlines

SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read_yolo(folder: Path, out: Path, images: Path | None = None) -> Counter[str]:
    """Write the COCO file of a folder of YOLO labels; returns what was read and left out, counted.

    Args:
        folder: The labels, with data.yaml (or classes.txt) in it or in a folder above it.
        out: The file to write. Must not exist.
        images: The images; by default the folder `images` in place of `labels` in the path.

    Raises:
        FileExistsError: `out` exists.
        CocoError: Images are missing, or lines are not of the format; all of them are counted.
    """
    must_be_new(out, "data")
    if images is None:
        parts = list(folder.parts)
        if "labels" in parts:
            parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
        images = Path(*parts)
        if images == folder and (folder / "labels").is_dir():
            folder, images = folder / "labels", folder / "images"
    names, faults, counts = _class_names(folder), Faults(), Counter[str]()
    files: dict[str, Path] = {}
    for file in sorted(images.glob("*")):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            if file.stem in files:
                faults.add("images of one name", f"{files[file.stem]} and {file}")
            files[file.stem] = file
    labels = {file.stem: file for file in sorted(folder.glob("*.txt")) if file.stem != "classes"}
    for stem in sorted(labels.keys() - files.keys()):
        faults.add("of labels without an image", str(labels[stem]))
    if not files:
        raise CocoError(f"{images}: no images for the labels in {folder}")
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (stem, file) in enumerate(files.items(), 1):
        try:
            height, width = read_header(file).size
        except ImageError as error:
            faults.add("that cannot be read", str(error))
            continue
        records.append({"id": image_id, "file_name": file.name, "height": height, "width": width})
        counts["images"] += 1
        if stem not in labels:
            counts["images without a label file"] += 1
            continue
        for number, line in enumerate(labels[stem].read_text().splitlines(), 1):
            if not line.strip():
                continue
            where = f"{labels[stem]}:{number}"
            label, shares = _parse(line, where, len(names), faults)
            if label is None:
                continue
            if len(shares) == 4:
                counts["boxes without a mask left out"] += 1
                continue
            polygon = (np.array(shares).reshape(-1, 2) * (width, height)).ravel().tolist()
            counts["instances"] += 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "segmentation": [polygon],
                    "iscrowd": 0,
                }
            )
    faults.raise_if_any(str(folder), "YOLO labels")
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    write_json(out, {"images": records, "annotations": annotations, "categories": categories})
    return counts


def write_yolo(annotations: Path, out: Path) -> Counter[str]:
    """Write a folder of YOLO labels and data.yaml; returns what was written and left out, counted.

    Raises:
        FileExistsError: `out` exists.
        CocoError: As `read_coco`; or two images would have one label file.
    """
    must_be_new(out, "data")
    file, counts = read_coco(annotations), Counter[str]()
    file.warn_left_out()
    lines: dict[int, list[str]] = {image_id: [] for image_id in file.images}
    labels = {category_id: label for label, category_id in enumerate(file.categories)}
    for annotation in file.annotations:
        if not annotation.is_instance:
            counts["crowds left out" if annotation.crowd else "empty masks left out"] += 1
            continue
        image = file.images[annotation.image_id]
        size = [image.height, image.width]
        mask_HW = coco_mask.decode({"size": size, "counts": annotation.counts})
        polygons = outlines(mask_HW)
        counts["instances"] += 1
        counts["holes filled"] += sum(len(polygon) - 1 for polygon in polygons)
        counts["parts made instances of their own"] += len(polygons) - 1
        for outer, *_ in polygons:
            shares = (np.array(outer) / (image.width, image.height)).ravel()
            values = " ".join(f"{share:.6f}" for share in shares)
            lines[annotation.image_id].append(f"{labels[annotation.category_id]} {values}")
    stems = Counter(Path(image.file_name or str(image.id)).stem for image in file.images.values())
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise CocoError(f"{annotations}: several images would have the label file {twice[0]}.txt")
    (out / "labels").mkdir(parents=True)
    for image_id, image in file.images.items():
        stem = Path(image.file_name or str(image.id)).stem
        (out / "labels" / f"{stem}.txt").write_text(
            "".join(f"{line}\n" for line in lines[image_id])
        )
        counts["images"] += 1
    names = "".join(
        f"  {n}: {json.dumps(name)}\n" for n, name in enumerate(file.categories.values())
    )
    (out / "data.yaml").write_text(f"path: .\nnames:\n{names}")
    return +counts


def _parse(line: str, where: str, classes: int, faults: Faults) -> tuple[int | None, list[float]]:
    try:
        label, *shares = line.split()
        number, values = int(label), [float(share) for share in shares]
    except ValueError:
        faults.add("lines that are not `class x y x y ...`", f"{where}: {brief(line)}")
        return None, []
    if not 0 <= number < classes:
        faults.add("of a class that has no name", f"{where}: {number}")
    elif len(values) % 2 or len(values) < 4:
        faults.add("with an odd number of coordinates", f"{where}: {brief(line)}")
    elif not all(-0.01 <= value <= 1.01 for value in values):
        faults.add("with coordinates outside of 0 to 1", f"{where}: {brief(line)}")
    else:
        return number, values
    return None, []


def _class_names(folder: Path) -> list[str]:
    """From data.yaml (a list, inline or not, or numbered names) or classes.txt, here or above."""
    for place in (folder, *folder.resolve().parents[:2]):
        for path in (place / "data.yaml", place / "data.yml"):
            if path.is_file():
                return _names_of_yaml(path)
        if (place / "classes.txt").is_file():
            return (place / "classes.txt").read_text(encoding="utf-8").rstrip().splitlines()
    raise CocoError(f"{folder}: no data.yaml or classes.txt with the names of the classes")


def _names_of_yaml(path: Path) -> list[str]:
    import yaml  # a dependency of accelerate

    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise CocoError(f"{path}: expected YAML with `names`: {error}") from error
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise CocoError(
            f"{path}: names: expected a list, or names by number from 0, got {brief(names)}"
        )
    return [str(name) for name in names]
