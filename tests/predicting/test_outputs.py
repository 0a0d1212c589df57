"""Names of outputs, what may be replaced, label maps and GeoJSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alignmask.model import Instances
from alignmask.predicting import outputs
from alignmask.predicting.outputs import geojson, label_map, made_here, output_names, save_picture


def names(*files: str, formats: Any = ("overlay",)) -> list[list[str]]:
    return [
        [str(name) for name in each.values()] for each in output_names([*map(Path, files)], formats)
    ]


def test_names_keep_the_subfolder_and_are_numbered_if_they_clash() -> None:
    assert names("a.jpg", "x/a.png", "x/b.c.png") == [["a.png"], ["x/a.png"], ["x/b.c.png"]]
    assert names("a.jpg", "x/b.png", "a.gif") == [["1_a.png"], ["x/2_b.png"], ["3_a.png"]]
    assert names("a.jpg", "A.jpg") == [["1_a.png"], ["2_A.png"]]  # one name on some systems
    every = ("overlay", "labels", "geojson")
    assert names("a.jpg", formats=every) == [["a.png", "a_labels.png", "a.geojson"]]
    assert names("a.jpg", "a_labels.jpg") == [["a.png"], ["a_labels.png"]]
    clash = names("a.jpg", "a_labels.jpg", formats=every)
    assert clash[0] == ["1_a.png", "1_a_labels.png", "1_a.geojson"]
    assert clash[1][0] == "2_a_labels.png"


def test_pictures_are_recognised_by_their_mark(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3), "red")
    save_picture(picture, tmp_path / "mine.png")
    picture.save(tmp_path / "other.png")
    picture.save(tmp_path / "jpeg.png", format="JPEG")
    (tmp_path / "folder.png").mkdir()
    found = {path.name: made_here(path) for path in tmp_path.iterdir()}
    assert found == {
        "mine.png": True,
        "other.png": False,
        "jpeg.png": False,
        "folder.png": False,
    }
    with Image.open(tmp_path / "mine.png") as again:
        assert again.convert("RGB").tobytes() == picture.tobytes()


ENTRY = {"file_name": "a.jpg", "image_id": 1, "segmentation": {}, "score": 0.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", True),
        (json.dumps([ENTRY, {**ENTRY, "quality": 1}]), True),
        *(
            (json.dumps([ENTRY, {k: v for k, v in ENTRY.items() if k != key}]), False)
            for key in ENTRY
        ),
        (json.dumps({"annotations": []}), False),
        ("[1]", False),
        ("[" * 10_000, False),
        ('[{"file_name"', False),
        ("", False),
    ],
)
def test_predictions_json_is_recognised_by_its_entries(
    tmp_path: Path, text: str, expected: bool
) -> None:
    (tmp_path / outputs.COCO_FILE).write_text(text)
    assert made_here(tmp_path / outputs.COCO_FILE) == expected
    (tmp_path / "other.json").write_text(text)
    assert not made_here(tmp_path / "other.json")


def test_better_instances_lie_on_top_in_a_label_map(monkeypatch: pytest.MonkeyPatch) -> None:
    masks_NHW = np.zeros((3, 2, 4), bool)
    masks_NHW[0, :, 0] = masks_NHW[1, 0, :2] = masks_NHW[2, :, 1:3] = True
    label_HW = label_map(masks_NHW)
    assert label_HW.dtype == np.uint16
    assert label_HW.tolist() == [[1, 2, 3, 0], [1, 3, 3, 0]]
    most = np.zeros((65_535, 1, 1), bool)
    most[-1] = True
    assert label_map(most).tolist() == [[65_535]]
    with pytest.raises(ValueError, match="at most 65,535 instances, and there are 65,536: raise"):
        label_map(np.zeros((65_536, 1, 1), bool))


def test_geojson_has_polygons_with_holes_and_closed_rings() -> None:
    masks_NHW = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks_NHW[0, 1:4, 1:4] = True
    masks_NHW[0, 2, 2] = False
    masks_NHW[1, 0, 0] = masks_NHW[1, 4, 5] = True
    number = torch.zeros(2)
    found = Instances(
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
        masks_NHW,
        torch.zeros(2, 4),
        number,
        number,
        torch.tensor([0.25, 0.125]),
    )
    first, second = geojson(found, ["猫", "dog"], [3, 7], "a.jpg")["features"]
    assert first["properties"] == {
        "class": "dog",
        "category_id": 7,
        "score": 0.75,
        "quality": 0.25,
        "objectType": "annotation",
        "classification": {"name": "dog"},
        "measurements": {"score": 0.75, "quality": 0.25},
    }
    assert first["geometry"]["type"] == "Polygon"
    outer, hole = first["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert hole[0] == hole[-1]
    assert {*outer} == {(1, 1), (4, 1), (4, 4), (1, 4)}
    assert {*hole} == {(2, 2), (3, 2), (3, 3), (2, 3)}
    assert second["geometry"]["type"] == "MultiPolygon"
    assert [len(polygon) for polygon in second["geometry"]["coordinates"]] == [1, 1]
