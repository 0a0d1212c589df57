"""YOLO's format there and back: masks stay the same, and what it cannot say is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from alignmask.curation.yolo import convert_yolo, write_yolo
from alignmask.data import CocoError
from alignmask.data.coco_json import read_coco
from alignmask.data.draft import Draft
from tests.data.coco_files import annotation, image_record, rle, write_coco

BOXES = "annotations without a mask left out (boxes, fewer than 3 points)"


def test_there_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 20, 30), bool)
    for mask in masks:  # an L, so that it is no box
        top, left = rng.integers(0, 8, 2)
        mask[top : top + 9, left : left + 4] = mask[top : top + 3, left : left + 12] = True
    images, path = write_coco(
        tmp_path,
        [image_record(3), image_record(5), image_record(8)],
        [annotation(n, (3, 5)[n % 2], (7, 4)[n // 3], rle(mask)) for n, mask in enumerate(masks)],
        [{"id": 7, "name": "b: 'x'"}, {"id": 4, "name": "a"}],
    )
    out = tmp_path / "yolo"
    assert write_yolo(path, out) == {"instances": 6, "images": 3}
    back = tmp_path / "back.json"
    assert convert_yolo(out / "labels", back, images) == {"images": 3, "instances": 6}
    first, second = read_coco(path), read_coco(back)
    assert list(second.categories.values()) == ["a", "b: 'x'"] == list(first.categories.values())

    def content(file):
        return sorted(
            (file.images[a.image_id].file_name, file.categories[a.category_id], a.counts)
            for a in file.annotations
        )

    assert content(first) == content(second)


def test_what_the_format_cannot_say_is_counted(tmp_path: Path) -> None:
    ring = np.zeros((20, 30), bool)
    ring[2:10, 2:10], ring[4:6, 4:6] = True, False
    parts = np.zeros((20, 30), bool)
    parts[1:4, 1:4] = parts[8:12, 8:12] = True
    annotations = [
        annotation(1, segmentation=rle(ring)), annotation(2, segmentation=rle(parts)),
        annotation(3, iscrowd=1), annotation(4, segmentation=rle(ring & False)),
    ]  # fmt: skip
    images, path = write_coco(tmp_path, annotations=annotations)
    counts = write_yolo(path, tmp_path / "yolo")
    assert counts == {
        "instances": 2, "holes filled": 1, "parts made instances of their own": 1,
        "crowds left out": 1, "empty masks left out": 1, "images": 1,
    }  # fmt: skip
    convert_yolo(tmp_path / "yolo" / "labels", tmp_path / "back.json", images)
    areas = sorted(a.pixels for a in read_coco(tmp_path / "back.json").annotations)
    assert areas == [9, 16, 64]
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        write_yolo(path, tmp_path / "yolo")


def layout(folder: Path, lines: str, names: str = "names: [cell, dust]\n") -> Path:
    (folder / "labels").mkdir()
    write_coco(folder)[1].unlink()
    (folder / "labels" / "1.txt").write_text(lines)
    (folder / "data.yaml").write_text(names)
    return folder


@pytest.mark.parametrize("names", ["names: [cell, dust]\n", "names:\n  1: dust\n  0: cell\n"])
def test_a_folder_of_images_and_labels(tmp_path: Path, names: str) -> None:
    """Boxes have no masks; images may have no labels."""
    lines = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n\n0 0.5 0.5 0.2 0.2\n"
    folder = layout(tmp_path, lines, names)
    (folder / "images" / "2.png").write_bytes((folder / "images" / "1.png").read_bytes())
    (folder / "images" / "notes.md").touch()
    counts = convert_yolo(folder, folder / "out.json")
    assert counts == {
        "images": 2, "images without a label file": 1, BOXES: 1,
        "instances": 1,
    }  # fmt: skip
    file = read_coco(folder / "out.json")
    assert file.categories == {1: "cell", 2: "dust"}
    (found,) = file.annotations
    expected = np.zeros((20, 30), bool)
    expected[2:10, 3:15] = True
    assert np.array_equal(coco_mask.decode({"size": [20, 30], "counts": found.counts}), expected)
    assert found.category_id == 2


def test_faults_are_counted_with_their_lines(tmp_path: Path) -> None:
    lines = "x 0 0 1 1 1 0\n2 0 0 1 1 1 0\n0 0 0 1 1 1\n0 0 0 1 1 1 7\n0 0 0 1 1 1 0\n"
    folder = layout(tmp_path, lines)
    (folder / "labels" / "5.txt").touch()
    with pytest.raises(CocoError) as caught:
        convert_yolo(folder, folder / "out.json")
    text = str(caught.value)
    for number, kind in enumerate(
        ["lines that are not", "of a class that has", "with an odd", "with coordinates outside"], 1
    ):
        assert f"1 {kind}" in text
        assert f"1.txt:{number}: " in text
    assert "1 of labels without an image" in text
    assert not (folder / "out.json").exists()


def test_without_names_or_images(tmp_path: Path) -> None:
    folder = layout(tmp_path, "", "names: 5\n")
    with pytest.raises(CocoError, match=r"data.yaml: names: expected a list"):
        convert_yolo(folder, folder / "out.json")
    (folder / "data.yaml").write_text("nc: 2\n")
    with pytest.raises(CocoError, match="expected YAML with `names`"):
        convert_yolo(folder, folder / "out.json")
    (folder / "data.yaml").unlink()
    with pytest.raises(CocoError, match=r"no data.yaml or classes.txt"):
        convert_yolo(folder, folder / "out.json")
    (folder / "classes.txt").write_text("cell\n")
    (folder / "images" / "1.png").unlink()
    with pytest.raises(CocoError, match="no images for the labels"):
        convert_yolo(folder, folder / "out.json")


def test_details_of_folders(tmp_path: Path) -> None:
    """A last class without a line's end, hidden files, two images of one name."""
    root = tmp_path / "labels" / "set"
    root.mkdir(parents=True)
    folder = layout(root, "1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cell\ndust")
    (folder / "images" / "._1.png").write_text("not an image")
    convert_yolo(folder / "labels", folder / "out.json")
    file = read_coco(folder / "out.json")
    assert list(file.categories.values()) == ["cell", "dust"]
    assert len(file.annotations) == 1
    (folder / "images" / "1.jpg").write_bytes((folder / "images" / "1.png").read_bytes())
    with pytest.raises(CocoError, match=r"1 images of one name\n.*1.jpg and .*1.png"):
        convert_yolo(folder / "labels", folder / "again.json")


def test_images_in_subfolders(tmp_path: Path) -> None:
    """Two of one name in different folders, too."""
    names = ("a.png", "sub/a.png", "sub/deep/c.png")
    records = [{**image_record(n), "file_name": name} for n, name in enumerate(names, 1)]
    images, path = write_coco(tmp_path, records, [annotation(n, n) for n in (1, 2, 3)])
    out, back = tmp_path / "yolo", tmp_path / "back.json"
    write_yolo(path, out)
    labels = sorted(str(file.relative_to(out / "labels")) for file in out.rglob("*.txt"))
    assert labels == ["a.txt", "sub/a.txt", "sub/deep/c.txt"]
    assert convert_yolo(out / "labels", back, images) == {"images": 3, "instances": 3}
    _, twice = write_coco(tmp_path, [image_record(1), {**image_record(2), "file_name": "1.PNG"}])
    with pytest.raises(CocoError, match=r"\.txt files: 1 of images that would have one file"):
        write_yolo(twice, tmp_path / "none")


def test_a_class_that_occurs_twice(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.txt").write_text("")
    (folder / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(CocoError, match=r"classes\.txt: 'cat' occurs twice"):
        convert_yolo(folder, tmp_path / "out.json")
    with pytest.raises(CocoError, match="the names of the classes: 'a' occurs twice"):
        Draft(["a", "b", "a"])
