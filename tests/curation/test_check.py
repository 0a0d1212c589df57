"""Everything that is wrong with a data set is found at once, and what training accepts is not
called a fault."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignmask.curation.check import Report, check, shared_images
from alignmask.data import CocoDataset, CocoError
from tests.data.coco_files import annotation, box_polygon, image_record, write_coco


def counts(report: Report) -> tuple[dict[str, int], dict[str, int]]:
    faults, notes = report.faults.places, report.notes.places
    return {k: len(v) for k, v in faults.items()}, {k: len(v) for k, v in notes.items()}


def test_a_good_data_set(tmp_path: Path) -> None:
    images, path = write_coco(tmp_path)
    report = check(path, images)
    assert counts(report) == ({}, {})
    assert report.text() == (
        f"{path}: 1 image, 1 instance of 1 class\nnothing that training or evaluation would refuse"
    )


def test_faults_of_every_kind_at_once(tmp_path: Path) -> None:
    records = [image_record(n) for n in range(1, 6)]
    images, path = write_coco(
        tmp_path,
        records,
        [
            annotation(1, segmentation=[[1] * 7]),
            annotation(2, category_id=7),
            annotation(3, segmentation=[[[2, 2], [8, 2], [8, 8]]]),
            annotation(4),
        ],
    )
    (images / "2.png").unlink()
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:-200])  # headers do not show it
    Image.new("RGB", (9, 9)).save(images / "4.png")
    report = check(path, images)
    assert counts(report)[0] == {
        "with a faulty segmentation": 1,
        "of a category that is not listed": 1,
        "whose points are pairs [x, y]": 1,
        "whose file does not exist": 1,
        "that cannot be read": 1,
        "whose file has another size": 1,
    }
    for name, place in (("2.png", "exist"), ("3.png", "read"), ("4.png", "size")):
        (kind,) = [k for k in report.faults.places if place in k]
        assert name in report.faults.places[kind][0]
    assert report.text().startswith(f"{path}: 5 images, 1 instance of 1 class\nfaults: 1 with a ")
    with pytest.raises(CocoError):
        CocoDataset(images, path)


def test_what_is_worth_knowing(tmp_path: Path) -> None:
    many = [annotation(100 + n, 3, segmentation=box_polygon(n % 28, n // 28, n % 28 + 2, n // 28 + 2))
            for n in range(101)]  # fmt: skip
    images, path = write_coco(
        tmp_path,
        [image_record(n) for n in range(1, 5)],
        [
            annotation(1),
            annotation(2),  # the same mask
            annotation(3, category_id=2),  # the same mask, another class
            annotation(4, iscrowd=1),
            annotation(5, segmentation=box_polygon(50, 50, 60, 60)),
            annotation(6, segmentation=[[1, 2, 3, 4]]),
            *many,
        ],
        [{"id": n, "name": name} for n, name in ((1, "cell"), (2, "dust"), (3, "Cell "))],
    )
    shutil.copy(images / "1.png", images / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(images / "4.png") as image:
        image.save(images / "4.png", exif=exif)
    Image.fromarray(np.full((20, 30), 4000, np.uint16)).save(images / "3.png")
    report = check(path, images)
    assert counts(report) == (
        {},
        {
            "without a polygon of 3 points or more": 1,
            "with the mask and class of another one": 1,
            "crowd": 1,
            "with a mask of zero area": 1,
            "without instances": 2,
            "with more than 100 instances": 1,
            "classes that no instance has": 1,
            "class names that differ in case or spaces alone": 1,
            "with the pixels of another one": 1,
            "of 16 bits that are nearly black": 1,
            "turned upright, as EXIF's orientation says": 1,
        },
    )
    assert report.notes.places["with the pixels of another one"] == [
        "image id 2: 2.png is 1.png, image id 1"
    ]
    assert report.notes.places["with more than 100 instances"] == ["image id 3: 101"]


def test_images_in_training_and_validation(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_coco(tmp_path / "a", [image_record(1), image_record(2)])
    second = write_coco(tmp_path / "b", [image_record(1), image_record(3)])
    (second[0] / "1.png").rename(second[0] / "other.png")
    text = second[1].read_text().replace('"1.png"', '"other.png"')
    second[1].write_text(text)
    reports = [check(path, images) for images, path in (first, second)]
    (sentence,) = shared_images(reports)
    assert sentence == f"1 image in both {first[1]} and {second[1]}: 1.png and other.png"
    assert shared_images(reports[:1]) == []


def test_a_file_without_an_instance_is_at_fault(tmp_path: Path) -> None:
    _, path = write_coco(tmp_path, annotations=[annotation(iscrowd=1)])
    assert counts(check(path))[0] == {"file without any instance": 1}
    path.write_text("{}")
    with pytest.raises(CocoError, match="list 'images'"):
        check(path)


def test_real_data_has_no_faults(data_root: Path) -> None:
    path = data_root / "dsb2018_nuclei" / "instances_val.json"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    report = check(path, path.parent / "images")
    assert not report.faults
    assert report.summary == "84 images, 2086 instances of 1 class"
    assert len(report.pixels) == 84


def test_an_image_or_a_class_that_is_listed_twice(tmp_path: Path) -> None:
    again = {**image_record(1), "id": 2}
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "Cat "}]
    images, path = write_coco(tmp_path, [image_record(1), again], categories=names)
    text = check(path, images).text()
    assert "image id 2: 1.png is 1.png, image id 1" in text
    assert "class names that occur twice: 'cat', 'cat', 'Cat '" in text
