"""From COCO's format to another one and back: masks stay what they were."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from alignmask.curation.cvat import convert_cvat, write_cvat
from alignmask.curation.labelme import convert_labelme, write_labelme
from alignmask.curation.voc import convert_voc, write_voc
from alignmask.data.coco_json import read_coco
from alignmask.data.records import CocoFile
from tests.data.coco_files import annotation, image_record, rle, write_coco

NAMES = ["café: <b>", "zelle & kern"]  # in the order in which they are sorted
HEIGHT, WIDTH = 12, 17


def masks(file: CocoFile) -> Counter[Any]:
    """What a file says, without the ids."""
    return Counter(
        (file.images[a.image_id].file_name, file.categories[a.category_id], a.counts)
        for a in file.annotations
    )


def labelme(images: Path, path: Path, folder: Path) -> CocoFile:
    write_labelme(path, folder / "labelme", images)
    convert_labelme(folder / "labelme", folder / "back.json", images)
    return read_coco(folder / "back.json")


def cvat(images: Path, path: Path, folder: Path) -> CocoFile:
    write_cvat(path, folder / "cvat.xml")
    convert_cvat(folder / "cvat.xml", folder / "back.json")
    return read_coco(folder / "back.json")


def voc(images: Path, path: Path, folder: Path) -> CocoFile:
    write_voc(path, folder / "voc", images=images)
    convert_voc(folder / "voc", folder / "back.json", split="train")
    return read_coco(folder / "back.json")


pixels = st.sampled_from([1] * 9 + [0, 0, 2, 3])
label_maps = st.lists(
    st.lists(pixels, min_size=HEIGHT, max_size=HEIGHT), min_size=WIDTH, max_size=WIDTH
)
"""Columns of pixels: 0 is background, others are instances, the first of them full of holes."""


def records() -> list[dict[str, Any]]:
    return [image_record(n, HEIGHT, WIDTH) for n in (4, 2)]


@pytest.mark.parametrize("form", [labelme, cvat, voc])
@settings(max_examples=25, deadline=None)
@given(label_map=label_maps, more=label_maps)
def test_masks_that_do_not_overlap_stay_the_same(form: Any, label_map: Any, more: Any) -> None:
    instances = [
        annotation(10 * image_id + number, image_id, 1 + number % 2, rle(map_WH == number))
        for image_id, map_WH in ((4, np.array(label_map).T), (2, np.array(more).T))
        for number in (1, 2, 3)
        if (map_WH == number).any()
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)]
        images, path = write_coco(folder, records(), instances, categories)
        if instances:
            assert masks(form(images, path, folder)) == masks(read_coco(path))


coordinates = st.floats(-9, 25, allow_nan=False).map(lambda value: round(value, 4))
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7).map(
    lambda points: [value for point in points for value in point]
)


@pytest.mark.parametrize("form", [labelme, cvat])
@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.lists(polygons, min_size=1, max_size=3), min_size=1, max_size=3))
def test_polygons_stay_the_same(form: Any, parts: Any) -> None:
    """Of several parts, and outside of the image as well."""
    instances = [annotation(n, 4, 1, part) for n, part in enumerate(parts)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, path = write_coco(folder, records(), instances)
        before = masks(read_coco(path))
        empty = {
            key for key in before if key[2] == rle(np.zeros((HEIGHT, WIDTH)))["counts"].encode()
        }
        for key in empty:
            del before[key]
        if before:
            assert masks(form(images, path, folder)) == before


def test_voc_keeps_what_lies_on_top(tmp_path: Path) -> None:
    """The small one on the large one; one that is hidden is counted, and crowds are void."""
    large, small, hidden, crowd = np.zeros((4, HEIGHT, WIDTH), bool)
    large[2:10, 2:10], small[4:6, 4:8], hidden[4:6, 4:9], crowd[0:4, 0:4] = True, True, True, True
    hidden[4:6, 8] = False
    images, path = write_coco(
        tmp_path,
        [image_record(1, HEIGHT, WIDTH)],
        [annotation(n, segmentation=rle(mask)) for n, mask in enumerate((hidden, large, small))]
        + [annotation(9, segmentation=rle(crowd), iscrowd=1)],
    )
    counts = write_voc(path, tmp_path / "voc")
    assert counts == {
        "images": 1, "instances": 2, "crowds made void": 1,
        "instances hidden by others, which are lost": 1, "instances partly covered by smaller ones": 1,
    }  # fmt: skip
    convert_voc(tmp_path / "voc", tmp_path / "back.json", images=images)
    back = read_coco(tmp_path / "back.json")
    found = [
        coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": a.counts}).astype(bool)
        for a in back.annotations
    ]
    expected = large & ~small
    assert sorted(mask.sum() for mask in found) == sorted([small.sum(), expected.sum()])
    assert any(np.array_equal(mask, expected) for mask in found)
