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
    instances = f" {total} instance{'s' * (total != 1)}"
    assert f"{instances} of {len(data[2])} class" in text
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
        "2 images (1 without instances), 1 instance of 1 class; annotations left out: none"
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
    assert "2 without a polygon of 3 points or more (first: annotation id 11, image id 1)" in text
    assert "1 single polygon of fewer than 3 points" in text
    assert str(files[1]) in text
    assert len(dataset[0].labels_N) == 2
    assert "1 image (0 without instances), 2 instances" in dataset.describe()
    assert "2 without a polygon of 3 points or more" in dataset.describe()


def test_empty_rles_are_left_out_when_the_file_is_read(tmp_path):
    nothing = np.zeros((20, 30), dtype=bool)
    annotations = [annotation(1, segmentation=rle(nothing)), annotation(2)]
    with pytest.warns(
        UserWarning, match=r"1 with a mask of zero area \(first: annotation id 1, image id 1\)"
    ):
        dataset = CocoDataset(*write_coco(tmp_path, annotations=annotations))
    assert (
        "1 instance of 1 class; annotations left out: 1 with a mask of zero area"
        in dataset.describe()
    )
    assert dataset[0].masks_NHW.shape[0] == 1


def test_polygons_outside_of_the_image_are_left_out(tmp_path):
    outside = box_polygon(100, 100, 120, 120)
    annotations = [annotation(1, segmentation=outside), annotation(2, category_id=2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    files = write_coco(tmp_path, annotations=annotations, categories=categories)
    with pytest.warns(
        UserWarning, match=r"1 with a mask of zero area \(first: annotation id 1, im"
    ):
        dataset = CocoDataset(*files)
    assert dataset[0].labels_N.tolist() == [1]
    assert "annotations left out: 1 with a mask of zero area" in dataset.describe()


def test_that_most_are_left_out_is_said_with_the_likely_cause(tmp_path):
    crowds = [annotation(n, iscrowd=1) for n in range(3)]
    with pytest.warns(UserWarning, match=r"left out, of 5: 3 crowd \(first: .* 0, .*CVAT's"):
        CocoDataset(*write_coco(tmp_path, annotations=[*crowds, annotation(3), annotation(4)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # COCO's own files have some
        CocoDataset(*write_coco(tmp_path, annotations=[*crowds, *map(annotation, range(3, 6))]))


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ([], "It has no annotations: it may have been exported before"),
        (
            [annotation(n, iscrowd=1) for n in range(2)],
            r"2 annotations, none .*\n  2 crowd: .*CVAT",
        ),
        (
            [annotation(segmentation=[])],
            r"1 annotation, .*\n  1 without a polygon .*: boxes without",
        ),
        (
            [annotation(segmentation=[[]])],
            r"1 without a polygon of 3 points or more: boxes without",
        ),
        ([annotation(segmentation=box_polygon(90, 90, 99, 99))], "1 with a mask of zero area: the"),
    ],
)
def test_nothing_to_train_on_is_refused_with_the_likely_cause(tmp_path, annotations, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = CocoDataset(*write_coco(tmp_path, annotations=annotations))
    with pytest.raises(CocoError, match="there is nothing to train on") as caught:
        dataset.require_instances()
    assert re.search(reason, str(caught.value))
    CocoDataset(*write_coco(tmp_path)).require_instances()


# --- orientation ---


def photo(path: Path, stored_HWC: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored_HWC).save(path, exif=exif)


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (20, 20)])
@pytest.mark.parametrize("exif", ["auto", "apply", "ignore"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_photos_are_turned_upright_where_the_size_fits(tmp_path, size, exif, orientation):
    """The size in the JSON against that of a photo stored with 20 x 30, or 20 x 20 pixels."""
    stored = np.random.default_rng(0).integers(0, 256, (20, min(30, sum(size) - 20), 3), np.uint8)
    files = write_coco(tmp_path, [image_record(1, *size)])
    photo(files[0] / "1.png", stored, orientation)
    quarters = {1: 0, 3: 2, 6: 3}[orientation]
    upright = np.rot90(stored, quarters)
    fits = {"upright": upright.shape[:2] == size, "stored": stored.shape[:2] == size}
    expected = {"ignore": "stored", "apply": "upright"}.get(
        exif, "upright" if fits["upright"] else "stored"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not fits[expected]:
            with pytest.raises(CocoError, match=r"1 whose file has another size\n.* image id 1: "):
                CocoDataset(*files, exif=exif)
            return
        dataset = CocoDataset(*files, exif=exif)
    turned = expected == "upright" and orientation != 1
    image_HWC = dataset[0].image_CHW.permute(1, 2, 0).numpy()
    assert np.array_equal(image_HWC, upright if turned else stored)
    assert ["1 image of 1 turned upright" in str(w.message) for w in caught] == [True] * turned
    assert ("1 image turned upright" in dataset.describe()) == turned


# --- faults ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": None}, "1 without a file_name\n  without a file_name: image id 1"),
        ({"file_name": "gone.png"}, "image id 1: {images}/gone.png (the folder has 1.png)"),
        ({"file_name": "no/thing.jpeg"}, "no/thing.jpeg (the folder has 1 other file, such as 1.png)"),
        ({"height": 21}, "image id 1: {images}/1.png: the file has 20 x 30 pixels (height x width), "
         "the JSON says 21 x 30"),
    ],
)  # fmt: skip
def test_faults_of_image_files_are_found_at_the_start(tmp_path, changes, message):
    images, path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0].update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(CocoError) as caught:
        CocoDataset(images, path)
    assert str(caught.value).startswith(f"{path}: images in {images}: 1 ")
    assert message.format(images=images) in str(caught.value)


def test_images_that_cannot_be_read_are_counted_at_the_start(tmp_path):
    images, path = write_coco(tmp_path, [image_record(n) for n in (1, 2, 3)])
    for name in ("1.png", "3.png"):
        (images / name).write_text("no image")
    with pytest.raises(
        CocoError, match=r"2 that cannot be read\n.* image id 1: .*1.png: not an im"
    ):
        CocoDataset(images, path)


def test_of_many_images_some_headers_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("alignmask.data.dataset._HEADERS", 2)
    images, path = write_coco(tmp_path, [image_record(n) for n in range(1, 5)])
    photo(images / "1.png", np.zeros((30, 20, 3), np.uint8), 6)
    (images / "2.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 image of the 2 looked at turned upright"):
        CocoDataset(images, path)


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
    with pytest.raises(CocoError, match="cannot be read: No such file"):
        CocoDataset(tmp_path, tmp_path / "missing.json")


def damage_image(images: Path, path: Path) -> str:
    file = images / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    return f"{path}, image id 1: {file}: cannot decode the image"


def shrink_image(images: Path, path: Path) -> str:
    Image.new("RGB", (20, 30)).save(images / "1.png")
    return f"{path}, image id 1: {images / '1.png'}: the file has 30 x 20 pixels (height x width)"


def delete_image(images: Path, path: Path) -> str:
    (images / "1.png").unlink()
    return f"{path}, image id 1: {images / '1.png'}: image file does not exist"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [damage_image, shrink_image, delete_image])
def test_faults_found_when_a_sample_is_loaded(tmp_path, damage, workers):
    images, path = write_coco(tmp_path)
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
            "340 images (0 without instances), 9588 instances of 1 class",
            "none",
        ),
        (
            "dsb2018_nuclei",
            "val",
            "84 images (0 without instances), 2086 instances of 1 class",
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


def test_images_of_32_bits_are_refused_at_the_start(tmp_path):
    images, path = write_coco(tmp_path)
    Image.fromarray(np.ones((20, 30), np.float32)).save(images / "1.tif")
    path.write_text(path.read_text().replace("1.png", "1.tif"))
    with pytest.raises(CocoError, match=r"1 with 32 bits a sample\n.*set data.sample_range"):
        CocoDataset(images, path)
    assert CocoDataset(images, path, sample_range=(0, 2))[0].image_CHW.unique().tolist() == [128]
