"""The one reader of annotation files: every fault is counted, named, and refused alike for
training and for evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignmask.data import CocoDataset, CocoError
from alignmask.data.coco_json import read_coco
from alignmask.data.faults import SHOWN_FAULTS
from alignmask.evaluation.results_file import load_ground_truth
from tests.data.coco_files import annotation, box_polygon, image_record, rle, write_coco

MASK = np.zeros((20, 30), dtype=bool)
MASK[3:9, 4:12] = True


def change(section: str, index: int = 0, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    def apply(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            if value is ...:
                del content[section][index][key]
            else:
                content[section][index][key] = value

    return apply


def segmentation(value: Any) -> Callable[[dict[str, Any]], Any]:
    return change("annotations", segmentation=value)


PLACE = "annotation id 1, image id 1"
FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "annotations are no list": (lambda d: d.update(annotations={}), "with a list 'annotations'"),
    "no list of images": (lambda d: d.pop("images"), "with a list 'images'"),
    "no images": (lambda d: d.update(images=[], annotations=[]), ": it lists no images"),
    "no categories": (lambda d: d.update(categories=[], annotations=[]), ": it lists no categories"),
    "image without id": (change("images", id=...), "images[0]: expected an object with an integer id"),
    "image id is text": (change("images", id="1"), "images[0]: expected an object with an integer id"),
    "image id is true": (change("images", id=True), "images[0]: expected an object with an integer id"),
    "image is no object": (lambda d: d["images"].append(5), "images[1]: expected an object with an integer id, got 5"),
    "image twice": (lambda d: d["images"].append(d["images"][0]), "images[1]: id 1 occurs twice"),
    "image without height": (change("images", height=...), "image id 1: height None, width 30"),
    "image of width 0": (change("images", width=0), "image id 1: height 20, width 0"),
    "image of half a pixel": (change("images", width=30.5), "image id 1: height 20, width 30.5"),
    "file name is a number": (change("images", file_name=7), "image id 1: file_name: expected str, got 7"),
    "category without id": (change("categories", id=...), "categories[0]: expected an object with an integer id"),
    "category name is a number": (change("categories", name=5), "category id 1: name: expected str, got 5"),
    "category twice": (lambda d: d["categories"].append({"id": 1, "name": "b"}), "categories[1]: id 1 occurs twice"),
    "annotation is no object": (lambda d: d["annotations"].append(5), "annotations[1]: expected an object"),
    "annotation without id": (change("annotations", id=...), "annotations[0]: expected an object"),
    "annotation twice": (
        lambda d: d["annotations"].append(d["annotations"][0]), "annotations[1], image id 1: id 1 occurs twice"
    ),
    "no image id": (change("annotations", image_id=...), "annotation id 1, image id None"),
    "unknown image": (change("annotations", image_id=8), "1 of an image that is not listed\n"),
    "image id is a list": (change("annotations", image_id=[1]), "annotation id 1, image id [1]"),
    "no category": (change("annotations", category_id=...), f"{PLACE}: category id None"),
    "unknown category": (change("annotations", category_id=8), f"{PLACE}: category id 8"),
    "no segmentation": (segmentation(...), f"{PLACE}: expected polygons or an RLE"),
    "RLE of another size": (
        segmentation({"size": [30, 20], "counts": "0"}),
        f"{PLACE}: RLE size [30, 20] differs from the image's [height, width] [20, 30]",
    ),
    "RLE too short": (
        segmentation({"size": [20, 30], "counts": "04"}), f"{PLACE}: RLE covers 4 pixels, the image has 20 x 30 = 600"
    ),
    "counts too short": (segmentation({"size": [20, 30], "counts": [3, 4]}), f"{PLACE}: RLE covers 7 pixels"),
    "RLE cut off": (
        segmentation({"size": [20, 30], "counts": "0o"}), f"{PLACE}: RLE counts are damaged or cut off: b'0o'"
    ),
    "RLE of strange letters": (
        segmentation({"size": [20, 30], "counts": "04é"}), f"{PLACE}: RLE counts are damaged or cut off"
    ),
    "odd polygon": (segmentation([[1, 2, 3, 4, 5, 6, 7]]), f"{PLACE}: expected polygons as lists of x, y, x, y, ..."),
    "odd polygon of a crowd": (change("annotations", segmentation=[[1] * 7], iscrowd=1), "got 7 numbers"),
    "polygon without its list": (segmentation([1, 2, 3, 4, 5, 6]), f"{PLACE}: expected a list of polygons, each"),
    "text in a polygon": (segmentation([["a"] * 6]), f"{PLACE}: polygon with something that is not a number: 'a'"),
    "numbers as text": (segmentation([[1, 2, 3, 4, 5, "6"]]), "something that is not a number: '6'"),
    "null in a polygon": (segmentation([[1, None, 3, 4, 5, 6]]), "something that is not a number: None"),
    "NaN in a polygon": (segmentation([[1, float("nan"), 3, 4, 5, 6]]), f"{PLACE}: polygon coordinates must be finite"),
    "far away": (segmentation([[1, 2, 3, 4, 5, 10**400]]), f"{PLACE}: polygon coordinates must be finite"),
    "pairs in polygons": (segmentation([[[2, 2], [8, 2], [8, 8], [2, 8]]]), "1 whose points are pairs [x, y]\n"),
    "pairs without polygons": (segmentation([[2, 2], [8, 2], [8, 8], [2, 8]]), "1 whose points are pairs [x, y]\n"),
    "shares of the image": (segmentation([[0.1, 0.1, 0.5, 0.1, 0.5, 1]]), "1 with polygons between 0 and 1\n"),
    "NaN area": (change("annotations", area=float("nan")), f"{PLACE}: nan (leave area out"),
    "negative area": (change("annotations", area=-1), f"{PLACE}: -1 (leave area out"),
    "area is text": (change("annotations", area="12"), f"{PLACE}: '12'"),
    "iscrowd is text": (change("annotations", iscrowd="0"), f"{PLACE}: '0'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_training_and_evaluation_refuse_the_same_with_the_same_words(tmp_path, fault):
    damage, message = FAULTS[fault]
    images, path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    errors = []
    for read in (read_coco, load_ground_truth, lambda path: CocoDataset(images, path)):
        with pytest.raises(CocoError) as caught:
            read(path)
        errors.append(str(caught.value))
    assert errors[0].startswith(str(path))
    assert message in errors[0]
    assert errors[0] == errors[1] == errors[2]


def test_one_message_counts_all_faults(tmp_path):
    bad = SHOWN_FAULTS + 3
    annotations = [annotation(n, segmentation=[[1] * 7]) for n in range(bad)]
    annotations += [annotation(bad, category_id=9), annotation(bad + 1)]
    with pytest.raises(CocoError) as caught:
        read_coco(write_coco(tmp_path, annotations=annotations)[1])
    first, *kinds = str(caught.value).splitlines()
    assert first.endswith(
        f"of {bad + 1} annotations: {bad} with a faulty segmentation, "
        "1 of a category that is not listed"
    )
    assert kinds[0].count("annotation id") == SHOWN_FAULTS
    assert kinds[0].endswith("and 3 more")
    assert f"annotation id {bad}, image id 1: category id 9" in kinds[1]


def test_masks_beyond_the_limit_are_not_looked_at(tmp_path):
    images = [image_record(1), image_record(2)]
    annotations = [annotation(1), annotation(2, image_id=2, segmentation=[[1] * 7])]
    _, path = write_coco(tmp_path, images, annotations)
    file = read_coco(path, limit=1)
    assert list(file.images) == [1]
    assert [a.id for a in file.annotations] == [1]
    with pytest.raises(CocoError, match="annotation id 2"):
        read_coco(path, limit=2)


def test_what_a_file_may_leave_out(tmp_path):
    """An area is then the mask's; a category is named by its id."""
    plain = annotation(1, area=7.5)
    empty = annotation(2, area=None, iscrowd=None, segmentation=rle(MASK))
    crowd = annotation(3, iscrowd=1)
    path = write_coco(tmp_path, annotations=[plain, empty, crowd], categories=[{"id": 1}])[1]
    file = read_coco(path)
    assert [a.area for a in file.annotations] == [7.5, 48, 36]
    assert [a.pixels for a in file.annotations] == [36, 48, 36]
    assert [a.crowd for a in file.annotations] == [False, False, True]
    assert file.categories == {1: "1"}


def test_a_byte_order_mark_is_read(tmp_path):
    path = write_coco(tmp_path)[1]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path).annotations) == 1


@pytest.mark.parametrize("small", [1, 2, 3])
def test_a_few_tiny_objects_in_a_corner_are_no_shares_of_the_image(tmp_path, small):
    """Of four polygons, more than half between 0 and 1 are a mistake."""
    corner = box_polygon(0, 0, 0.9, 1)
    annotations = [annotation(n, segmentation=corner) for n in range(small)]
    annotations += [annotation(n) for n in range(small, 4)]
    path = write_coco(tmp_path, annotations=annotations)[1]
    if small == 3:
        with pytest.raises(CocoError, match="3 with polygons between 0 and 1"):
            read_coco(path)
    else:
        assert [a.pixels > 30 for a in read_coco(path).annotations] == [False] * small + [True] * (
            4 - small
        )


def test_a_polygon_of_the_first_pixel_is_in_pixels(tmp_path):
    corner = annotation(1, segmentation=box_polygon(0, 0, 1, 1))
    assert read_coco(write_coco(tmp_path, annotations=[corner])[1]).annotations[0].pixels == 1
    shares = annotation(1, segmentation=box_polygon(0.2, 0.2, 0.9, 1))
    others = [annotation(n, segmentation=rle(MASK)) for n in (2, 3)]
    path = write_coco(tmp_path, annotations=[shares, *others])[1]
    assert len(read_coco(path).annotations) == 3  # one polygon among RLEs is not a majority


@pytest.mark.parametrize("bad", range(3))
def test_an_rle_that_sets_no_pixel_is_read(tmp_path, bad):
    masks = [MASK & (n != bad) for n in range(3)]
    annotations = [annotation(n, segmentation=rle(mask)) for n, mask in enumerate(masks)]
    file = read_coco(write_coco(tmp_path, annotations=annotations)[1])
    assert [a.pixels for a in file.annotations] == [48 * (n != bad) for n in range(3)]


def test_a_file_without_instances_is_said_to_have_none(tmp_path: Path):
    path = write_coco(tmp_path, annotations=[annotation(iscrowd=1)])[1]
    with pytest.warns(UserWarning, match=r"no annotation is an instance \(1 crowd among 1\)"):
        load_ground_truth(path)
