"""YOLO's folders as people have them are data sets, without a conversion."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from alignmask.curation.check import check
from alignmask.curation.layouts import find_data_set
from alignmask.curation.split import split as split_file
from alignmask.curation.stats import measure
from alignmask.curation.tile import cut_into_tiles
from alignmask.data import CocoDataset, CocoError
from alignmask.data.coco_json import read_coco
from alignmask.evaluation.results_file import load_ground_truth
from tests.commands.terminal import photo

SQUARE = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
BOX = "0 0.5 0.5 0.2 0.2\n"


def roboflow(root: Path, yaml: str = "train: ../train/images\nval: ../valid/images\n") -> Path:
    """Two images for training, one for validation, and no test images though data.yaml names
    some."""
    for split, name, lines in (
        ("train", "a", SQUARE + BOX),
        ("train", "b", ""),
        ("valid", "c", SQUARE),
    ):
        photo(root / split / "images" / f"{name}.jpg", (20, 30))
        (root / split / "labels").mkdir(exist_ok=True)
        (root / split / "labels" / f"{name}.txt").write_text(lines)
    (root / "data.yaml").write_text(f"{yaml}nc: 2\nnames: ['dust', 'zelle ü']\n", encoding="utf-8")
    return root


def test_a_folder_as_roboflow_exports_it(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "data")
    found = find_data_set(root)
    assert found[:4] == tuple(
        root / split / kind for split in ("train", "valid") for kind in ("images", "labels")
    )
    assert found.class_names == ["dust", "zelle ü"]
    assert find_data_set(root / "data.yaml") == found
    with pytest.warns(UserWarning, match=r"of 2: 1 without a polygon .* \(first: .*a.txt:2\)"):
        dataset = CocoDataset(found.train_images, found.train_annotations)
    assert len(dataset) == 2
    assert dataset.class_names == ["dust", "zelle ü"]
    expected = np.zeros((20, 30), bool)
    expected[2:10, 3:15] = True
    assert np.array_equal(dataset[0].masks_NHW.numpy(), expected[None])
    assert dataset[0].labels_N.tolist() == [1]
    assert "1 without instances" in dataset.describe()


@pytest.mark.parametrize(
    ("folders", "yaml"),
    [
        ("{kind}/{split}", "path: .\ntrain: images/train\nval: images/val\n"),
        ("{kind}/{split}", "path: ../data\ntrain: [images/train]\nvalid: images\\val\n"),
        ("{split}/{kind}", "train: train\nval: val\n"),
        ("{split}", "train: train\nval: val/\n"),
    ],
)
def test_other_layouts(tmp_path: Path, folders: str, yaml: str) -> None:
    """Images and labels side by side, by split or by kind, and in one folder."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        photo(root / folders.format(split=split, kind="images") / "sub" / "1.png", (20, 30))
        labels = root / folders.format(split=split, kind="labels") / "sub"
        labels.mkdir(parents=True, exist_ok=True)
        (labels / "1.txt").write_text(SQUARE)
    (root / "mine.yaml").write_text(f"{yaml}names:\n  0: dust\n  1: cell\n")
    (root / "other.yaml").write_text("learning_rate: 1\n")
    found = find_data_set(root)
    for images, labels in ((found[0], found[1]), (found[2], found[3])):
        file = read_coco(labels, images=images)
        assert [image.file_name for image in file.images.values()] == ["sub/1.png"]
        assert [annotation.pixels for annotation in file.annotations] == [96]
        assert len(CocoDataset(images, labels)) == 1


def test_every_tool_has_the_same_door(tmp_path: Path) -> None:
    labels = roboflow(tmp_path / "data") / "train" / "labels"
    images = labels.with_name("images")
    report = check(labels, images)
    assert not report.faults
    assert "without a polygon of 3 points or more: " + str(labels / "a.txt:2") in report.text()
    assert measure(labels, 100).per_class == {"dust": 0, "zelle ü": 1}
    split_file(labels, tmp_path / "split", share=0.5)
    parts = [read_coco(tmp_path / "split" / f"instances_{part}.json") for part in ("train", "val")]
    assert sum(len(part.annotations) for part in parts) == 1
    with pytest.warns(UserWarning, match="1 annotation left out"):
        assert cut_into_tiles(labels, images, tmp_path / "tiles", tile=32)[1] == 1
    truth = load_ground_truth(labels.parent.with_name("valid") / "labels")
    assert [entry["area"] for entry in truth.annotations] == [96]


def test_images_may_be_elsewhere(tmp_path: Path) -> None:
    """Where they are named."""
    labels = roboflow(tmp_path / "data") / "train" / "labels"
    labels.with_name("images").rename(tmp_path / "pictures")
    with pytest.warns(UserWarning, match="1 without a polygon"):
        dataset = CocoDataset(tmp_path / "pictures", labels)
    assert dataset.instances_per_image.tolist() == [1, 0]
    with pytest.warns(UserWarning, match="1 annotation left out"):
        assert len(load_ground_truth(labels, tmp_path / "pictures").annotations) == 1
    assert not check(labels, tmp_path / "pictures").faults
    with pytest.raises(CocoError, match=r"images: no images for the labels in .*labels"):
        read_coco(labels)


def test_an_edited_label_file_is_read_again(tmp_path: Path) -> None:
    """What is kept in memory is of the files, not of the folder, whose time stays the same."""
    labels = roboflow(tmp_path / "data") / "valid" / "labels"
    assert len(load_ground_truth(labels).annotations) == 1
    (labels / "c.txt").write_text(2 * SQUARE)
    os.utime(labels / "c.txt", (2e9, 2e9))
    assert len(load_ground_truth(labels).annotations) == 2


def test_faults_have_files_and_lines(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "data")
    labels = root / "train" / "labels"
    (labels / "a.txt").write_text(f"{SQUARE}7 0 0 1 1 1 0\n1.0 0 0 1 1 1 0\n0 0 0 x\n")
    (labels / "b.txt").write_bytes(b"\xff")
    (root / "train" / "images" / "b.jpg").write_bytes(b"")
    with pytest.raises(CocoError) as caught:
        read_coco(labels)
    for words in (
        "1 of a class that has no name", f"{labels / 'a.txt'}:2: 7", "a.txt:4: '0 0 0 x'",
        "1 lines that are not", "1 that cannot be read", "b.jpg",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert check(labels).faults.summary().count("1 ") == 3
    photo(root / "train" / "images" / "b.jpg", (20, 30))
    (labels / "a.txt").write_text("")
    with pytest.raises(CocoError, match=r"1 of labels that cannot be read\n.*b.txt: .*utf-8"):
        read_coco(labels)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: ../train/images\n", "expected the folders of `train` and `val`, val is not"),
        ("train: nowhere\nval: ../valid/images\n", "train: 'nowhere': no such folder: looked for"),
        ("train: train.txt\nval: ../valid/images\n", "train: expected the folder of its images"),
        ("train: [a, b]\nval: ../valid/images\n", "train: expected the folder .*lists of folders"),
        ("kpt_shape: [3, 2]\ntrain: train\nval: valid\n", "kpt_shape: the labels have keypoints"),
        ("train: train\nval: valid\n#", "data.yaml: expected YAML with `names`"),
        ("train: [\n", "cannot read the YAML file: "),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    root = roboflow(tmp_path, yaml)
    if yaml.endswith("#"):
        (root / "data.yaml").write_text(yaml)
    with pytest.raises(CocoError, match=message):
        find_data_set(root)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "data")
    with pytest.raises(CocoError, match=r"several folders.*: name one of .*train/labels, .*valid"):
        read_coco(root)
    (root / "empty").mkdir()
    with pytest.raises(CocoError, match=r"empty: a folder without label files \(\*.txt\)"):
        read_coco(root / "empty")
    (root / "data.yaml").write_text("names: [a, a]\n")
    with pytest.raises(CocoError, match="names: 'a' occurs twice"):
        read_coco(root / "train" / "labels")
    (root / "data.yaml").write_text("nc: 3\nnames: [a, b]\n")
    with pytest.raises(CocoError, match="nc is 3, and there are 2 names"):
        read_coco(root / "train" / "labels")
    (root / "data.yaml").write_text("train: train\nval: valid\nnames: [a, b]\n")
    (root / "valid" / "labels").rename(root / "valid" / "marks")
    with pytest.raises(CocoError, match=r"val: .*but their labels are not in .*valid/labels"):
        find_data_set(root)
