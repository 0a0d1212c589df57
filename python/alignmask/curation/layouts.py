"""A folder with a data set in one of the usual layouts: which files are for training and which for
validation, and where their images are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alignmask._printing import counted
from alignmask.data.coco_json import read_coco_json
from alignmask.data.faults import CocoError, Faults
from alignmask.data.file_names import find_files
from alignmask.data.yolo import find_yaml, names_of, read_splits

SPLITS = {"train": "train(ing)?", "val": "val(id(ation)?)?"}
"""Split -> what files and folders for it are called."""


class DataSet(NamedTuple):
    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path
    class_names: list[str]

    def __str__(self) -> str:
        return (
            f"training: {self.train_annotations}, images in {self.train_images}; validation: "
            f"{self.val_annotations}, images in {self.val_images}; "
            f"{counted(len(self.class_names), 'class', 'classes')}: "
            f"{', '.join(self.class_names[:5])}" + (", ..." if len(self.class_names) > 5 else "")
        )


def find_data_set(folder: Path) -> DataSet:
    """The data set in a folder: COCO JSON files there or up to two folders below, whose names, or
    whose folders' names, say "train" and "val"; or, if there are none, the YOLO labels of which its
    data.yaml says where they are. The YAML file itself may be named, too.

    That is the layout of COCO (annotations/instances_train2017.json, train2017/), of Roboflow's
    exports (train/_annotations.coco.json beside the images, valid/), and of this toolkit
    (instances_train.json, images/).

    Raises:
        CocoError: There is not exactly one file for each split, or images are not found; the
            message lists what was looked at.
    """
    if folder.is_file() and folder.suffix.lower() in (".yaml", ".yml"):
        return _of_yaml(folder)
    if not folder.is_dir():
        raise CocoError(f"{folder}: no such folder")
    files = sorted(
        {file for depth in ("*.json", "*/*.json", "*/*/*.json") for file in folder.glob(depth)}
    )
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {split: [] for split in SPLITS}
    for file in files:
        split = split_of(file, folder)
        if split is None:
            continue
        try:
            found[split].append((file, read_coco_json(file)))
        except CocoError:
            continue  # captions, keypoints, results, and what is no JSON
    if not any(found.values()) and (yaml := find_yaml(folder)):
        return _of_yaml(yaml)
    for split, candidates in found.items():
        if len(candidates) > 1:  # COCO has the same images with keypoints
            named = [entry for entry in candidates if "instances" in entry[0].stem.lower()]
            candidates = found[split] = named or candidates
        if len(candidates) != 1:
            which = ", ".join(str(file.relative_to(folder)) for file, _ in candidates)
            raise CocoError(
                f"{folder}: expected one COCO annotation file with {split!r} in its name, found "
                f"{which or 'none'}. Name the four paths: "
                "--data.train-images, --data.train-annotations, --data.val-images, "
                "--data.val-annotations"
            )
    (train, content), (val, val_content) = found["train"][0], found["val"][0]
    names = [
        str(category.get("name", category.get("id")))
        for category in content["categories"]
        if isinstance(category, dict)
    ]
    return DataSet(
        _images_of(train, content, "train", folder),
        train,
        _images_of(val, val_content, "val", folder),
        val,
        names,
    )


def split_of(file: Path, folder: Path) -> str | None:
    """ "train" or "val", by the words of the file's name and of its folders' names below `folder`,
    the nearest first; None if they say neither, or both."""
    for part in reversed(file.relative_to(folder).with_suffix("").parts):
        words = re.findall("[a-z]+", part.lower())
        splits = [s for s, names in SPLITS.items() if any(re.fullmatch(names, w) for w in words)]
        if splits:
            return splits[0] if len(splits) == 1 else None
    return None


def _images_of(file: Path, content: dict[str, Any], split: str, folder: Path) -> Path:
    names = [
        image["file_name"]
        for image in content["images"]
        if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ][:1]
    looked_at = []
    for place in dict.fromkeys(_places(file, split, folder)):
        if place.is_dir():
            looked_at.append(str(place))
            missing = Faults()
            find_files(place, names, names, missing)
            if names and not missing:
                return place
    raise CocoError(
        f"{file}: the folder of its images was not found: {names[0] if names else 'no image'} is in "
        f"none of {', '.join(looked_at)}. Name it with --data.{split}-images"
    )


def _places(file: Path, split: str, folder: Path) -> Iterable[Path]:
    """Where images may be, the likeliest first."""
    bases = [file.parent, *(p for p in file.parents[1:3] if p.is_relative_to(folder))]
    for base in bases:
        yield from _named_for(base, split)
        for images in (base / "images", base / "JPEGImages"):
            yield from _named_for(images, split)
            yield images
    yield from bases


def _named_for(base: Path, split: str) -> Iterator[Path]:
    if base.is_dir():
        for place in sorted(base.iterdir()):
            if place.is_dir() and split_of(place, base) == split:
                yield place


def _of_yaml(path: Path) -> DataSet:
    """The data set that a data.yaml of YOLO describes."""
    splits, names = read_splits(path), names_of(path)
    for split, part in splits.items():
        if split != "test" and not part.labels.is_dir():
            raise CocoError(
                f"{path}: {split}: the images are in {part.images}, but their labels are not in "
                f"{part.labels}: no such folder"
            )
    if missing := [split for split in ("train", "val") if split not in splits]:
        raise CocoError(
            f"{path}: expected the folders of `train` and `val`, {' and '.join(missing)} is not "
            "there. `alignmask data split` makes two parts of one"
        )
    train, val = splits["train"], splits["val"]
    return DataSet(train.images, train.labels, val.images, val.labels, names)
