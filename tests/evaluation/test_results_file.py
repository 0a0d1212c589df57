"""Faults in annotation and results files: every message says which file, image and annotation or
entry."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignmask.data import CocoError
from alignmask.data.faults import SHOWN_FAULTS, is_number
from alignmask.evaluation.metrics import evaluate_results
from alignmask.evaluation.results_file import (
    load_ground_truth,
    load_results,
)
from tests.evaluation.worlds import World, box_mask, rle, small_world

SIZE = (20, 30)
BOX = [[2, 3, 12, 3, 12, 9, 2, 9]]


@pytest.fixture
def world() -> World:
    """Image 7 with two annotations and two predictions, image 8 with nothing."""
    world = World({7: SIZE, 8: SIZE}, {3: "cat", 11: "dog"})
    for left in (0, 12):
        world.annotate(7, 3, box_mask(SIZE, 2, left, 9, left + 10), id=100 + left)
        world.predict(7, 3, box_mask(SIZE, 2, left, 9, left + 9), 0.5)
    return world


def results_file(folder: Path, entries: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return path


# -- annotation files
# --------------------------------------------------------------------------------------------------


def test_files_that_are_no_json(tmp_path: Path, world: World) -> None:
    truth = load_ground_truth(world.write(tmp_path))
    text = json.dumps(world.coco())
    broken = tmp_path / "broken.json"
    for content in (text[: len(text) // 2].encode(), b"", b"\xff\xfe{", b"{'a': 1}"):
        broken.write_bytes(content)
        for load in (load_ground_truth, lambda path: load_results(path, truth)):
            with pytest.raises(
                CocoError, match=r"broken\.json: (malformed JSON at line 1, column|not UTF-8)"
            ):
                load(broken)
    broken.write_bytes(b"[" * 200_000)
    for load in (load_ground_truth, lambda path: load_results(path, truth)):
        with pytest.raises(CocoError, match=r"broken\.json.*nested too deeply"):
            load(broken)
        with pytest.raises(CocoError, match=r"nowhere\.json.*No such file"):
            load(tmp_path / "nowhere.json")
        with pytest.raises(CocoError, match=r"a folder without label files|Is a directory"):
            load(tmp_path)


def test_annotations_without_polygon_are_left_out_with_a_count(
    tmp_path: Path, world: World
) -> None:
    """As the official tools do: too few points make no mask."""
    world.annotations[0]["segmentation"] = [[1, 1, 5, 5]]
    world.annotations[1]["segmentation"] = []
    for n in range(SHOWN_FAULTS):
        world.annotate(8, 3, box_mask(SIZE, 0, 0, 5, 5), id=200 + n, segmentation=[[1, 2]])
    world.annotate(8, 3, box_mask(SIZE, 0, 0, 5, 5), id=300, segmentation=[[1, 2], *BOX])
    with pytest.warns(
        UserWarning, match=r"annotations\.json: 7 annotations of 8 .*left out, without a polygon"
    ) as seen:
        truth = load_ground_truth(world.write(tmp_path))
    text = str(seen[0].message)
    assert (
        "annotation id 100, image id 7; annotation id 112, image id 7; annotation id 200, image id "
        "8" in text
    )
    assert text.endswith("and 2 more")
    assert len(truth.annotations) == 1


def test_a_file_that_changes_is_read_again(tmp_path: Path, world: World) -> None:
    path = world.write(tmp_path)
    first = load_ground_truth(path)
    assert load_ground_truth(str(path)) is first
    world.annotate(8, 3, box_mask(SIZE, 0, 0, 5, 5), id=9)
    path.write_text(json.dumps(world.coco()))
    os.utime(path, ns=(1, 1))
    assert len(load_ground_truth(path).annotations) == len(first.annotations) + 1


def test_every_form_of_segmentation_is_read_alike(tmp_path: Path, world: World) -> None:
    mask_HW = box_mask(SIZE, 3, 2, 9, 12)  # what BOX covers
    columns = mask_HW.T.ravel().astype(np.int8)
    counts = np.diff(np.flatnonzero(np.diff(columns, prepend=0, append=2)), prepend=0).tolist()
    forms = [BOX, rle(mask_HW), {"size": list(SIZE), "counts": counts}]
    world.annotations = []
    for form in forms:
        world.annotate(7, 3, mask_HW, segmentation=form)
    truth = load_ground_truth(world.write(tmp_path))
    assert len({a["segmentation"]["counts"] for a in truth.annotations}) == 1
    assert {tuple(a["bbox"]) for a in truth.annotations} == {(2, 3, 10, 6)}
    entries = [
        {"image_id": 7, "category_id": 3, "score": 0.5, "segmentation": form} for form in forms
    ]
    entries.append(
        {**entries[1], "segmentation": {**rle(mask_HW), "counts": rle(mask_HW)["counts"].encode()}}
    )
    entries.append({**entries[1], "segmentation": {**rle(mask_HW), "size": SIZE}})
    results = load_results(entries, truth)
    assert {e["segmentation"]["counts"] for e in results.entries} == {
        truth.annotations[0]["segmentation"]["counts"]
    }


def test_an_area_that_is_missing_is_the_masks(tmp_path: Path, world: World) -> None:
    del world.annotations[0]["area"]
    assert load_ground_truth(world.write(tmp_path)).annotations[0]["area"] == 70


# -- results files
# --------------------------------------------------------------------------------------------------

RESULT_FAULTS: dict[str, tuple[Any, str]] = {
    "no object": (5, "1 lacking image_id, .*\n.*entry 1$"),
    "no score": ({"score": ...}, r"1 lacking .*\n.*entry 1 \(image 7\)"),
    "no segmentation": ({"segmentation": ...}, r"1 without a segmentation\n.*entry 1 \(image 7\)"),
    "a box alone": (
        {"segmentation": ..., "bbox": [1, 2, 3, 4]},
        r"1 of a box without a segmentation\n.*entry 1 \(image 7\)",
    ),
    "NaN score": ({"score": float("nan")}, r"1 with a score .*\n.*entry 1 \(image 7\): nan"),
    "infinite score": ({"score": float("inf")}, r"entry 1 \(image 7\): inf"),
    "score is text": ({"score": "0.5"}, r"entry 1 \(image 7\): '0.5'"),
    "score is true": ({"score": True}, r"entry 1 \(image 7\): True"),
    "score is too large": ({"score": 10**400}, r"entry 1 \(image 7\): 1000.*\.\.\."),
    "score is null": ({"score": None}, r"entry 1 \(image 7\): None"),
    "unknown image": (
        {"image_id": 9},
        r"1 of an unknown image\n.*entry 1 \(image 9\) \(the annotation file's ids are 7, 8\)$",
    ),
    "image id is too large": (
        {"image_id": 10**400},
        r"not an integer\n.*entry 1 \(image 1000.*\.\.\.\)",
    ),
    "image id is text": ({"image_id": "7"}, r"not an integer\n.*entry 1 \(image '7'\)"),
    "image id is a list": ({"image_id": [7]}, r"not an integer\n.*entry 1 \(image \[7\]\)"),
    "unknown category": (
        {"category_id": 0},
        r"1 of an unknown category\n.*entry 1 \(image 7\): category 0 \(the annotation file's ids "
        r"are 3, 11\)",
    ),
    "category id is a list": (
        {"category_id": [3]},
        r"not an integer\n.*entry 1 \(image 7\): category \[3\]",
    ),
    "mask of another size": (
        {"segmentation": rle(np.ones((30, 20), bool))},
        r"another size .*\n.*entry 1 \(image 7\): mask \[30, 20\], image \[20, 30\]",
    ),
    "size is a number": (
        {"segmentation": {"size": 5, "counts": "11"}},
        r"entry 1 \(image 7\): RLE size 5",
    ),
    "no size": (
        {"segmentation": {"counts": "11"}},
        r"entry 1 \(image 7\): expected polygons or an RLE",
    ),
    "truncated RLE": (
        {
            "segmentation": {
                "size": list(SIZE),
                "counts": rle(box_mask(SIZE, 2, 2, 9, 9))["counts"][:-3],
            }
        },
        r"faulty segmentation\n.*entry 1 \(image 7\): RLE",
    ),
    "empty counts": (
        {"segmentation": {"size": list(SIZE), "counts": ""}},
        r"entry 1 \(image 7\): ",
    ),
    "negative counts": (
        {"segmentation": {"size": list(SIZE), "counts": [-1, 601]}},
        r"entry 1 \(image 7\): .*non-neg",
    ),
    "short polygon": (
        {"segmentation": [[1, 2, 3, 4]]},
        r"1 without a polygon of 3 points or more\n.*entry 1 \(image 7\)",
    ),
    "no mask": ({"segmentation": None}, r"entry 1 \(image 7\): expected polygons or an RLE"),
}


@pytest.mark.parametrize("fault", RESULT_FAULTS)
def test_faults_of_results_files_are_named(tmp_path: Path, world: World, fault: str) -> None:
    damage, message = RESULT_FAULTS[fault]
    if isinstance(damage, dict):
        changed = {**world.results[1], **damage}
        world.results[1] = {key: value for key, value in changed.items() if value is not ...}
    else:
        world.results[1] = damage
    path = results_file(tmp_path, world.results)
    with pytest.raises(CocoError, match=message) as error:
        load_results(path, load_ground_truth(world.write(tmp_path)))
    assert str(error.value).startswith(f"{path}: of 2 entries: 1 ")


def test_one_error_tells_of_all_faults(tmp_path: Path, world: World) -> None:
    good = world.results[0]
    entries = [
        good,
        {**good, "score": None},
        *[{**good, "image_id": 50 + n} for n in range(SHOWN_FAULTS + 3)],
    ]
    with pytest.raises(CocoError) as error:
        load_results(results_file(tmp_path, entries), load_ground_truth(world.write(tmp_path)))
    first, *lines = str(error.value).splitlines()
    assert first.endswith(
        "of 10 entries: 1 with a score that is not a finite number, 8 of an unknown image"
    )
    assert lines[1].count("entry") == SHOWN_FAULTS
    assert lines[1].endswith("and 3 more (the annotation file's ids are 7, 8)")


def test_a_results_file_is_a_list(tmp_path: Path, world: World) -> None:
    with pytest.raises(
        CocoError, match=r"results\.json: a COCO results file is a list of entries, got dict"
    ):
        load_results(
            results_file(tmp_path, {"annotations": []}), load_ground_truth(world.write(tmp_path))
        )


def test_unknown_entries_can_be_left_out_but_faulty_ones_cannot(
    tmp_path: Path, world: World
) -> None:
    annotations = world.write(tmp_path)
    truth = load_ground_truth(annotations)
    good = world.results[0]
    other = {**good, "segmentation": rle(np.ones((5, 5), bool))}
    entries = [
        {**good, "image_id": 9},
        *world.results,
        {**good, "category_id": 5},
        other,
        {**good, "image_id": 1},
    ]
    entries.append({**good, "score": None})
    message = r"left out 2 of an unknown image, 1 of an unknown category, 1 whose mask has another .*, 1 with a score"
    with pytest.warns(UserWarning, match=r"results\.json: " + message):
        kept = load_results(results_file(tmp_path, entries), truth, ignore_unknown=True)
    assert len(kept.entries) == 2
    assert sorted(kept.ignored.values()) == [1, 1, 1, 2]
    with pytest.warns(UserWarning, match="left out"):
        metrics = evaluate_results(annotations, entries, ignore_unknown=True)
    assert metrics == evaluate_results(annotations, world.results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            CocoError, match=r"of 8 entries: 1 without a polygon of 3 points or more\n"
        ):
            load_results([*entries, {**good, "segmentation": [[1, 2]]}], truth, ignore_unknown=True)


def test_entries_are_of_the_image_that_their_file_name_names(tmp_path: Path, world: World) -> None:
    """As `alignmask predict` writes them: the ids are positions."""
    truth = load_ground_truth(world.write(tmp_path))
    named = [{**entry, "image_id": 8, "file_name": "photos/7.png"} for entry in world.results]
    with pytest.warns(
        UserWarning, match=r"2 entries matched by file_name, .*: entry 0 .* id 7; and 1"
    ):
        found = load_results(results_file(tmp_path, named), truth)
    assert [entry["image_id"] for entry in found.entries] == [7, 7]
    unknown = [*world.results, {**world.results[0], "file_name": "9.png"}]
    with pytest.raises(
        CocoError, match=r"1 of a file_name that .*\n.*entry 2 \(image 7\): '9.png'"
    ):
        load_results(unknown, truth)
    with pytest.warns(UserWarning, match="left out 1 of a file_name"):
        assert len(load_results(unknown, truth, ignore_unknown=True).entries) == 2


def test_a_file_name_of_several_images_is_a_fault(tmp_path: Path, world: World) -> None:
    data = world.coco()
    for record, name in zip(data["images"], ("a/x.png", "b/x.png"), strict=True):
        record["file_name"] = name
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    truth = load_ground_truth(path)
    entry = {**world.results[0], "file_name": "x.png"}
    assert load_results([entry], truth).entries[0]["image_id"] == 7
    with pytest.raises(
        CocoError, match=r"fits several images\n.*entry 0 \(image 3\): 'x.png': 7, 8"
    ):
        load_results([{**entry, "image_id": 3}], truth)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_ids_may_be_numbers_of_any_kind(tmp_path: Path, world: World, engine: Any) -> None:
    annotations = world.write(tmp_path)
    same = [
        {
            **e,
            "image_id": float(e["image_id"]),
            "category_id": np.int64(e["category_id"]),
            "score": np.float32(e["score"]),
        }
        for e in world.results
    ]
    assert evaluate_results(annotations, same, engine) == evaluate_results(
        annotations, world.results, engine
    )


def test_nothing_that_is_read_is_changed(tmp_path: Path) -> None:
    world = small_world()
    truth = load_ground_truth(world.write(tmp_path))
    results = load_results(world.results, truth)
    before = repr((truth.annotations, results.entries))
    for engine in ("hotcoco", "pycocotools"):
        evaluate_results(truth, results, engine)
    assert repr((truth.annotations, results.entries)) == before


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3), -2.0])
def test_numbers(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize(
    "value", [None, "1", True, float("nan"), float("inf"), np.float32("nan"), [1]]
)
def test_no_numbers(value: Any) -> None:
    assert not is_number(value)


def test_a_folder_of_labels_is_read_as_it_is_now(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
    Image.new("RGB", (30, 20)).save(images / "a.png")
    (labels / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    for name in ("cat", "cow"):
        (tmp_path / "classes.txt").write_text(f"{name}\n")
        assert list(load_ground_truth(labels, images).categories.values()) == [name]
