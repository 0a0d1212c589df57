"""YOLO's segmentation format: a text file per image with `class x y x y ...` in shares of the
image's width and height, and data.yaml with the names of the classes and the folders of the images.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignmask.data.draft import Draft, require_distinct
from alignmask.data.faults import CocoError, Faults, brief
from alignmask.data.images import Header, ImageError, image_suffixes, read_header

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_FOLDERS_ABOVE = 3
"""How far above the labels the names of the classes are looked for."""


class Split(NamedTuple):
    """The folders of one part of a data set."""

    images: Path
    labels: Path


def read_yolo(folder: Path, images: Path | None = None) -> Draft:
    """Read a folder of YOLO labels, and what is in its subfolders.

    A line of a box alone becomes an annotation without a polygon, which is counted wherever
    annotations are read. Images without a label file have no instances.

    Args:
        folder: The labels, with data.yaml (or classes.txt) in it or in a folder above it; or the
            folder above `labels` and `images`.
        images: The images; by default the folder `images` in place of the last `labels` in the
            path, or that of the labels itself.

    Raises:
        CocoError: There are no labels, images or names of classes. Faults of lines and images are
            left in the draft.
    """
    if (folder / "labels").is_dir():
        images = images or folder / "images"
        folder = folder / "labels"
    if images is None:
        images = _swapped(folder, "labels", "images")
    labels = _by_stem(folder, {".txt"})
    labels.pop("classes", None)
    parts = [str(place) for place in sorted(folder.glob("*/labels")) if place.is_dir()]
    if parts or not labels:
        what = "several folders of labels" if parts else "a folder without label files (*.txt)"
        raise CocoError(
            f"{folder}: {what}: expected a COCO JSON file, or a folder of YOLO labels"
            + (f": name one of {', '.join(parts)}" if parts else "")
        )
    names = class_names(folder)
    draft = Draft(names)
    files = _by_stem(images, image_suffixes(), draft.faults)
    if not files:
        raise CocoError(f"{images}: no images for the labels in {folder}")
    for stem in sorted(labels.keys() - files.keys()):
        draft.faults.add("of labels without an image", str(labels[stem]))
    with ThreadPoolExecutor(8) as pool:  # most of the time is waiting for the file system
        for (stem, file), header in zip(
            files.items(), pool.map(_header, files.values()), strict=True
        ):
            if isinstance(header, ImageError):
                draft.faults.add("that cannot be read", str(header))
                continue
            image_id = draft.add_image(file.relative_to(images).as_posix(), header.size)
            if stem in labels:
                _read_lines(labels[stem], names, image_id, header.size, draft)
            else:
                draft.counts["images without a label file"] += 1
    return draft


def _read_lines(
    path: Path, names: list[str], image_id: int, size: tuple[int, int], draft: Draft
) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        draft.faults.add("of labels that cannot be read", f"{path}: {error}")
        return
    height, width = size
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        label, shares = _parse(line, where, len(names), draft.faults)
        if label is None:
            continue
        polygon = (np.array(shares).reshape(-1, 2) * (width, height)).ravel().tolist()
        draft.add(image_id, names[label], [] if len(shares) == 4 else [polygon], where)


def find_yaml(folder: Path) -> Path | None:
    """data.yaml, or the one YAML file of a folder that names classes."""
    for name in YAML_NAMES:
        if (folder / name).is_file():
            return folder / name
    files = [*folder.glob("*.yaml"), *folder.glob("*.yml")]
    having = [file for file in files if not file.name.startswith(".") and _has_names(file)]
    return having[0] if len(having) == 1 else None


def read_splits(path: Path) -> dict[str, Split]:
    """The folders that a data.yaml names, by split: train, val, test, as far as it has them.

    Folders are relative to `path` in the file, or to the file. Exports of Roboflow have `../` in
    front of folders that are beside the file.

    Raises:
        CocoError: A folder does not exist, or the file names lists of images.
    """
    content = _load(path)
    root = path.parent / str(content.get("path") or "")
    found = {}
    for split, keys in SPLIT_KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str) or value.endswith(".txt"):
            raise CocoError(
                f"{path}: {split}: expected the folder of its images, got {brief(value)}: lists of "
                "folders or of images are not read; put the images, and their labels, into one "
                "folder with subfolders"
            )
        bare = value.replace("\\", "/")
        while bare.startswith("../"):
            bare = bare[3:]
        places = list(dict.fromkeys([root / value, root / bare, path.parent / bare]))
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise CocoError(
                f"{path}: {split}: {brief(value)}: no such folder: looked for "
                f"{', '.join(str(place) for place in places)}"
            )
        if "images" not in folder.parts and (folder / "images").is_dir():
            folder = folder / "images"
        found[split] = Split(folder, _swapped(folder, "images", "labels"))
    return found


def class_names(folder: Path) -> list[str]:
    """From data.yaml (a list, inline or not, or numbered names) or classes.txt, here or above."""
    places = [folder, *folder.resolve().parents[:_FOLDERS_ABOVE]]
    for place in places:
        if path := find_yaml(place):
            return names_of(path)
        if (place / "classes.txt").is_file():
            names = (place / "classes.txt").read_text(encoding="utf-8").rstrip().splitlines()
            require_distinct(names, f"{place / 'classes.txt'}")
            return names
    raise CocoError(f"{folder}: no data.yaml or classes.txt with the names of the classes")


def names_of(path: Path) -> list[str]:
    """The names of the classes in a data.yaml. Raises CocoError if there are none."""
    content = _load(path)
    if "names" not in content:
        raise CocoError(f"{path}: expected YAML with `names`")
    names = content["names"]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise CocoError(
            f"{path}: names: expected a list, or names by number from 0, got {brief(names)}"
        )
    names = [str(name) for name in names]
    require_distinct(names, f"{path}: names")
    if content.get("nc") not in (None, len(names)):
        raise CocoError(f"{path}: nc is {brief(content['nc'])}, and there are {len(names)} names")
    if content.get("kpt_shape"):
        raise CocoError(
            f"{path}: kpt_shape: the labels have keypoints, not outlines; export them for "
            "segmentation"
        )
    return names


def _load(path: Path) -> dict[str, Any]:
    import yaml  # a dependency of accelerate

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CocoError(f"{path}: cannot read the YAML file: {error}") from error
    if not isinstance(content, dict):
        raise CocoError(f"{path}: expected YAML with `names`, got {brief(content)}")
    return content


def _has_names(path: Path) -> bool:
    try:
        return "names" in _load(path)
    except CocoError:
        return False


def _swapped(folder: Path, old: str, new: str) -> Path:
    """The folder with the last `old` in its path replaced."""
    parts = list(folder.parts)
    if old in parts:
        parts[len(parts) - 1 - parts[::-1].index(old)] = new
    return Path(*parts)


def _by_stem(
    folder: Path, suffixes: Collection[str], faults: Faults | None = None
) -> dict[str, Path]:
    """The files below a folder by their path without the suffix."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in suffixes or not file.is_file():
            continue
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found and faults is not None:
            faults.add("images of one name", f"{found[stem]} and {file}")
        found[stem] = file
    return found


def _header(path: Path) -> Header | ImageError:
    try:
        return read_header(path)
    except ImageError as error:
        return error


def _parse(line: str, where: str, classes: int, faults: Faults) -> tuple[int | None, list[float]]:
    try:
        label, *shares = line.split()
        number, values = float(label), [float(share) for share in shares]
    except ValueError:
        number, values = -0.5, []
    if not number.is_integer():
        faults.add("lines that are not `class x y x y ...`", f"{where}: {brief(line)}")
    elif not 0 <= number < classes:
        faults.add("of a class that has no name", f"{where}: {int(number)}")
    elif len(values) % 2:
        faults.add("with an odd number of coordinates", f"{where}: {brief(line)}")
    elif len(values) < 4:
        faults.add("with a single point", f"{where}: {brief(line)}")
    elif not all(-0.01 <= value <= 1.01 for value in values):
        faults.add("with coordinates outside of 0 to 1", f"{where}: {brief(line)}")
    else:
        return int(number), values
    return None, []
