"""Data sets are found in the usual layouts, and nothing is guessed where several are possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignmask.curation.layouts import find_data_set, split_of
from alignmask.data import CocoError

CATEGORIES = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]


def write(folder: Path, annotations: str, *images: str) -> None:
    """An annotation file, and the images that it names by the last parts of their paths."""
    path = folder / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": n, "file_name": Path(image).name} for n, image in enumerate(images)]
    path.write_text(json.dumps({"images": records, "annotations": [], "categories": CATEGORIES}))
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()


LAYOUTS = {
    "COCO": (
        ("annotations/instances_train2017.json", "train2017/a.jpg"),
        ("annotations/instances_val2017.json", "val2017/b.jpg"),
    ),
    "COCO with keypoints": (
        ("annotations/instances_train2017.json", "train2017/a.jpg"),
        ("annotations/instances_val2017.json", "val2017/b.jpg"),
    ),
    "Roboflow": (
        ("train/_annotations.coco.json", "train/a.jpg"),
        ("valid/_annotations.coco.json", "valid/b.jpg"),
    ),
    "this toolkit": (
        ("instances_train.json", "images/a.jpg"), ("instances_val.json", "images/b.jpg")
    ),
    "the same names in both": (
        ("train/instances.json", "train/images/a.jpg"), ("val/instances.json", "val/images/a.jpg")
    ),
    "images by split": (
        ("train.json", "images/train/a.jpg"), ("validation.json", "images/validation/a.jpg")
    ),
    "all together": (("my_training.json", "a.jpg"), ("my-val.json", "b.jpg")),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    train, val = LAYOUTS[layout]
    write(tmp_path, *train)
    write(tmp_path, *val)
    if layout == "COCO with keypoints":
        write(tmp_path, "annotations/person_keypoints_train2017.json", "train2017/a.jpg")
    (tmp_path / "notes_train.json").write_text("{}")  # no COCO file
    found = find_data_set(tmp_path)
    assert found.train_annotations == tmp_path / train[0]
    assert found.val_annotations == tmp_path / val[0]
    assert found.train_images == (tmp_path / train[1]).parent
    assert found.val_images == (tmp_path / val[1]).parent
    assert found.class_names == ["cell", "dust"]
    assert "2 classes: cell, dust" in str(found)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["val.json"], "with 'train' in its name, found none. Name the four"),
        (["train.json"], "with 'val' in its name, found none"),
        (["train.json", "train_2.json", "val.json"], "found train.json, train_2.json"),
        (["train_val.json", "val.json"], "with 'train' in its name, found none"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        write(tmp_path, name, "images/a.jpg")
    with pytest.raises(CocoError, match=message):
        find_data_set(tmp_path)


def test_images_that_are_nowhere(tmp_path: Path) -> None:
    write(tmp_path, "train.json", "images/a.jpg")
    write(tmp_path, "val.json", "images/b.jpg")
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(
        CocoError, match=r"val.json: the folder .* b.jpg is in none of .*/images.*--data.val-images"
    ):
        find_data_set(tmp_path)
    with pytest.raises(CocoError, match="no such folder"):
        find_data_set(tmp_path / "nowhere")


def test_cocos_files_come_before_yolos(tmp_path: Path) -> None:
    """Of a folder with both, such as one that was converted."""
    for file, image in LAYOUTS["this toolkit"]:
        write(tmp_path, file, image)
    (tmp_path / "data.yaml").write_text("names: [a]\ntrain: x\nval: y\n")
    assert find_data_set(tmp_path).train_annotations == tmp_path / "instances_train.json"


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("a/training_v2.json", "train"), ("train/x.json", "train"), ("train/val.json", "val"),
        ("strain.json", None), ("evaluation.json", None), ("VAL/x.json", "val"),
    ],
)  # fmt: skip
def test_split_of(file: str, split: str | None) -> None:
    assert split_of(Path("/data") / file, Path("/data")) == split
