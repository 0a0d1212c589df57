"""CocoDataset against pycocotools' COCO, and every fault with its message."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from alignmask.data import CocoDataset, CocoError, collate, read_coco_json
from tests.data.coco_files import annotation, box_polygon, counts, image_record, rle, write_coco


def quiet_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def check_against_pycocotools(dataset: CocoDataset, path: Path, limit: int | None = None) -> None:
    oracle = quiet_coco(path)
    assert dataset.category_ids == sorted(oracle.cats)
    assert [dataset.file_name(n) for n in range(len(dataset))] == [
        image["file_name"] for image in oracle.dataset["images"]
    ][:limit]
    assert dataset.class_names == [oracle.cats[i]["name"] for i in sorted(oracle.cats)]
    assert dataset.image_ids == [image["id"] for image in oracle.dataset["images"]][:limit]
    for index, image_id in enumerate(dataset.image_ids):
        sample = dataset.load(index)
        expected = [
            (oracle.annToMask(ann), ann["category_id"])
            for ann in oracle.imgToAnns[image_id]
            if not ann.get("iscrowd", 0)
        ]
        expected = [(mask, category) for mask, category in expected if mask.any()]
        assert sample.image_id == image_id
        assert sample.original_size == sample.size == tuple(sample.masks_NHW.shape[1:])
        assert [dataset.category_ids[label] for label in sample.labels_N] == [
            category for _, category in expected
        ]
        for mask_HW, (expected_HW, _) in zip(sample.masks_NHW.numpy(), expected, strict=True):
            assert np.array_equal(mask_HW, expected_HW.astype(bool))


# --- what a data set gives ---


@st.composite
def data_sets(draw) -> tuple[list[dict], list[dict], list[dict]]:
    category_ids = draw(st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True))
    image_ids = draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=4, unique=True))
    sides = st.integers(2, 24)
    images = [image_record(i, draw(sides), draw(sides)) for i in image_ids]
    annotations = []
    for number in range(draw(st.integers(0, 8))):
        image = draw(st.sampled_from(images))
        size = image["height"], image["width"]
        kind = draw(st.sampled_from(["polygons", "compressed", "uncompressed"]))
        mask = np.random.default_rng(draw(st.integers(0, 999))).random(size) < draw(
            st.sampled_from([0.0, 0.3, 0.9])
        )
        coordinates = st.lists(st.floats(-5, 30), min_size=3, max_size=6).map(
            lambda values: values + values
        )
        if kind == "polygons":
            segmentation = draw(st.lists(coordinates, min_size=1, max_size=3))
        else:
            segmentation = (
                rle(mask) if kind == "compressed" else {"size": list(size), "counts": counts(mask)}
            )
        crowd = {"iscrowd": draw(st.integers(0, 1))} if draw(st.booleans()) else {}
        annotations.append(
            annotation(
                number, image["id"], draw(st.sampled_from(category_ids)), segmentation, **crowd
            )
        )
    return images, annotations, [{"id": i, "name": f"class {i}"} for i in category_ids]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data_sets())
def test_equals_pycocotools(tmp_path, data):
    images, path = write_coco(tmp_path, *data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zero-area masks
        dataset = CocoDataset(images, path)
        check_against_pycocotools(dataset, path)
    total = sum(len(dataset.load(i).labels_N) for i in range(len(dataset)))
    crowds = sum(a.get("iscrowd", 0) for a in data[1])
    empty = len(data[1]) - crowds - total
    text = dataset.describe()
    assert f" {total} instances of {len(data[2])} classes" in text
    assert (f"{crowds} crowd" in text) == (crowds > 0)
    assert (f"{empty} with a mask of zero area" in text) == (empty > 0)


def test_images_are_read_and_images_without_instances_stay(tmp_path):
    dataset = CocoDataset(
        *write_coco(tmp_path, [image_record(5), image_record(3)], [annotation(image_id=3)])
    )
    assert len(dataset) == 2
    sample = dataset[0]
    assert (sample.image_id, sample.file_name, sample.original_size) == (5, "5.png", (20, 30))
    assert sample.masks_NHW.shape == (0, 20, 30)
    assert sample.labels_N.dtype == torch.int64
    pixels = np.array(Image.open(tmp_path / "images" / "5.png"))
    assert np.array_equal(sample.image_CHW.permute(1, 2, 0).numpy(), pixels)
    assert (
        "2 images (1 without instances), 1 instances of 1 classes; annotations left out: none"
        in dataset.describe()
    )


def test_limit_masks_and_transform(tmp_path):
    degenerate = annotation(3, image_id=9, segmentation=[[0, 0, 1, 1]])
    annotations = [annotation(1, image_id=4), annotation(2, image_id=2), degenerate]
    files = write_coco(tmp_path, [image_record(i) for i in (4, 2, 9)], annotations)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the fault of image 9 is beyond the limit
        limited = CocoDataset(
            *files, limit=2, masks=False, transform=lambda sample: ("transformed", sample)
        )
    assert limited.image_ids == [4, 2]
    word, sample = limited[1]
    assert word == "transformed"
    assert sample.image_id == 2
    assert sample.masks_NHW.shape == (0, 20, 30)
    assert limited.load(1).image_id == 2
    with pytest.raises(IndexError):
        limited[2]
    with pytest.raises(IndexError):
        limited[-1]
    with pytest.raises(ValueError, match="limit"):
        CocoDataset(*files, limit=0)


def test_file_names_may_lead_into_folders(tmp_path):
    images, path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "deep/er/1.png"
    path.write_text(json.dumps(content))
    (images / "deep" / "er").mkdir(parents=True)
    (images / "1.png").rename(images / "deep" / "er" / "1.png")
    assert CocoDataset(images, path)[0].image_id == 1


def test_a_pickled_data_set_is_the_same(tmp_path):
    dataset = CocoDataset(*write_coco(tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].masks_NHW, dataset[0].masks_NHW)
    assert copy.describe() == dataset.describe()


# --- what the official tools skip: counted, with a warning ---


def test_degenerate_polygons_are_left_out_and_counted(tmp_path):
    annotations = [
        annotation(11, segmentation=[[1, 1, 5, 5]]),
        annotation(12, segmentation=[]),
        annotation(13, segmentation=[[1, 1, 5, 5], *box_polygon(2, 2, 6, 6)]),
        annotation(14),
    ]
    files = write_coco(tmp_path, annotations=annotations)
    with pytest.warns(UserWarning, match="annotations left out") as caught:
        dataset = CocoDataset(*files)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "2 without a polygon of 3 points or more (first: image id 1, annotation id 11)" in text
    assert "1 single polygons of fewer than 3 points" in text
    assert str(files[1]) in text
    assert len(dataset[0].labels_N) == 2
    assert "1 images (0 without instances), 2 instances" in dataset.describe()
    assert "2 without a polygon of 3 points or more" in dataset.describe()


def test_empty_rles_are_left_out_when_the_file_is_read(tmp_path):
    nothing = np.zeros((20, 30), dtype=bool)
    annotations = [annotation(1, segmentation=rle(nothing)), annotation(2)]
    with pytest.warns(
        UserWarning, match=r"1 with a mask of zero area \(first: image id 1, annotation id 1\)"
    ):
        dataset = CocoDataset(*write_coco(tmp_path, annotations=annotations))
    assert (
        "1 instances of 1 classes; annotations left out: 1 with a mask of zero area"
        in dataset.describe()
    )
    assert dataset[0].masks_NHW.shape[0] == 1


def test_empty_polygons_are_left_out_when_they_are_met(tmp_path):
    outside = box_polygon(100, 100, 120, 120)
    annotations = [annotation(1, segmentation=outside), annotation(2, category_id=2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    dataset = CocoDataset(*write_coco(tmp_path, annotations=annotations, categories=categories))
    with pytest.warns(
        UserWarning,
        match="image id 1, annotation id 1: annotation left out, with a mask of zero area",
    ):
        sample = dataset[0]
    assert sample.labels_N.tolist() == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert dataset[0].labels_N.tolist() == [1]  # told once
    assert "1 with a mask of zero area" in dataset.describe()


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_count_into_the_same_description(tmp_path, context):
    annotations = [annotation(1, segmentation=box_polygon(100, 100, 120, 120)), annotation(2)]
    dataset = CocoDataset(*write_coco(tmp_path, annotations=annotations))
    loader = DataLoader(dataset, collate_fn=collate, num_workers=1, multiprocessing_context=context)
    assert [batch.counts for batch in loader] == [[1]]
    assert "1 with a mask of zero area" in dataset.describe()


# --- faults ---


def edit(path: Path, section: str, index: int = 0, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del content[section][index][key]
        else:
            content[section][index][key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("images", {"id": ...}, "images[0]: id is missing"),
        ("images", {"id": "1"}, "images[0]: id: expected int, got '1'"),
        ("images", {"height": ...}, "image id 1: height is missing"),
        ("images", {"file_name": ...}, "image id 1: file_name is missing"),
        ("images", {"width": 0}, "image id 1: expected positive sides, got height 20, width 0"),
        ("images", {"width": 30.0}, "image id 1: width: expected int, got 30.0"),
        (
            "images",
            {"file_name": "gone.png"},
            "image id 1: {images}/gone.png: image file does not exist",
        ),
        (
            "images",
            {"file_name": "no/folder.png"},
            "image id 1: {images}/no/folder.png: image file does not exist",
        ),
        ("annotations", {"id": ...}, "annotations[0]: id is missing"),
        ("annotations", {"image_id": ...}, "annotation id 1: image_id is missing"),
        ("annotations", {"category_id": ...}, "annotation id 1: category_id is missing"),
        (
            "annotations",
            {"image_id": 8},
            "image id 8, annotation id 1: the image id is not among the images",
        ),
        (
            "annotations",
            {"category_id": 8},
            "image id 1, annotation id 1: category id 8 is not among the categories",
        ),
        (
            "annotations",
            {"segmentation": ...},
            "image id 1, annotation id 1: expected polygons or an RLE",
        ),
        (
            "annotations",
            {"segmentation": {"size": [30, 20], "counts": "0"}},
            "image id 1, annotation id 1: RLE size [30, 20] differs from the image's [height, "
            "width] [20, 30]",
        ),
        (
            "annotations",
            {"segmentation": {"size": [20, 30], "counts": "04"}},
            "image id 1, annotation id 1: RLE covers 4 pixels, the image has 20 x 30 = 600",
        ),
        (
            "annotations",
            {"segmentation": {"size": [20, 30], "counts": "0o"}},
            "image id 1, annotation id 1: RLE counts are damaged or cut off: b'0o'",
        ),
        (
            "annotations",
            {"segmentation": {"size": [20, 30], "counts": "04é"}},
            "image id 1, annotation id 1: RLE counts are damaged or cut off",
        ),
        (
            "annotations",
            {"segmentation": [[1, 2, 3, 4, 5, 6, 7]], "iscrowd": 1},
            "image id 1, annotation id 1: expected polygons as lists of x, y, x, y, ...",
        ),
        ("categories", {"id": ...}, "categories[0]: id is missing"),
        ("categories", {"name": 5}, "categories[0]: name: expected str, got 5"),
    ],
)
def test_faults_found_when_the_file_is_read(tmp_path, section, changes, message):
    images, path = write_coco(tmp_path)
    edit(path, section, **changes)
    with pytest.raises(CocoError) as caught:
        CocoDataset(images, path)
    assert str(caught.value).startswith(f"{path}, {message.format(images=images)}")


def test_duplicate_ids(tmp_path):
    for arguments, message in (
        (
            {"images": [image_record(4), image_record(4)], "annotations": []},
            "image id 4: the image id occurs twice",
        ),
        (
            {"annotations": [annotation(7), annotation(7)]},
            "image id 1, annotation id 7: the annotation id occurs twice",
        ),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            "category id 1 occurs twice",
        ),
    ):
        with pytest.raises(CocoError, match=message):
            CocoDataset(*write_coco(tmp_path, **arguments))


def test_empty_lists(tmp_path):
    with pytest.raises(CocoError, match="lists no images"):
        CocoDataset(*write_coco(tmp_path, images=[], annotations=[]))
    with pytest.raises(CocoError, match="lists no categories"):
        CocoDataset(*write_coco(tmp_path, annotations=[], categories=[]))


def test_json_faults(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (
        ('{"images": [],\n "annotations": [,]}', "malformed JSON at line 2, column 18"),
        ("", "malformed JSON at line 1, column 1"),
        ("[]", "expected a JSON object with a list 'images'"),
        ('{"images": [], "annotations": {}}', "expected a JSON object with a list 'annotations'"),
        ('{"images": [], "annotations": []}', "expected a JSON object with a list 'categories'"),
    ):
        path.write_text(text)
        with pytest.raises(CocoError, match=re.escape(f"{path}: {message}")):
            read_coco_json(path)
    path.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(CocoError, match="not UTF-8 text"):
        read_coco_json(path)
    with pytest.raises(CocoError, match="cannot read the annotation file: No such file"):
        CocoDataset(tmp_path, tmp_path / "missing.json")


def damage_image(images: Path, path: Path) -> str:
    file = images / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    return f"{path}, image id 1: {file}: cannot decode the image"


def shrink_image(images: Path, path: Path) -> str:
    Image.new("RGB", (20, 30)).save(images / "1.png")
    return (
        f"{path}, image id 1: {images / '1.png'}: the file has 30 x 20 pixels (height x width, EXIF"
    )


def delete_image(images: Path, path: Path) -> str:
    (images / "1.png").unlink()
    return f"{path}, image id 1: {images / '1.png'}: image file does not exist"


def break_polygon(images: Path, path: Path) -> str:
    return f"{path}, image id 1, annotation id 1: polygon coordinates must be finite"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [damage_image, shrink_image, delete_image, break_polygon])
def test_faults_found_when_a_sample_is_loaded(tmp_path, damage, workers):
    images, path = write_coco(tmp_path)
    if damage is break_polygon:
        edit(path, "annotations", segmentation=[[0, 0, 3, 0, float("nan"), 3]])
    dataset = CocoDataset(images, path)
    message = damage(images, path)
    with pytest.raises(CocoError, match=re.escape(message)):
        list(DataLoader(dataset, collate_fn=collate, num_workers=workers))


# --- real data ---


@pytest.mark.parametrize(
    ("name", "split", "contents", "left_out"),
    [
        (
            "coco_subset",
            "train",
            "343 images (3 without instances), 2945 instances of 80 classes",
            "29 crowd",
        ),
        (
            "coco_subset",
            "val",
            "126 images (1 without instances), 1057 instances of 80 classes",
            "10 crowd",
        ),
        (
            "dsb2018_nuclei",
            "train",
            "340 images (0 without instances), 9588 instances of 1 classes",
            "none",
        ),
        (
            "dsb2018_nuclei",
            "val",
            "84 images (0 without instances), 2086 instances of 1 classes",
            "none",
        ),
    ],
)
def test_real_data(data_root, name, split, contents, left_out):
    path = data_root / name / f"instances_{split}.json"
    if not path.is_file():
        pytest.skip(f"{path} not found")
    text = CocoDataset(data_root / name / "images", path).describe()
    assert text == f"{path}: {contents}; annotations left out: {left_out}"
    check_against_pycocotools(
        CocoDataset(data_root / name / "images", path, limit=40), path, limit=40
    )
