"""CVAT's XML as its users have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from alignmask.curation.cvat import convert_cvat, write_cvat
from alignmask.data import CocoError
from alignmask.data.coco_json import read_coco
from tests.data.coco_files import annotation, write_coco

HEAD = (
    "<annotations><version>1.1</version><meta><job><labels><label><name>zelle</name></label>"
    "<label><name>a &lt;b&gt;</name></label></labels></job></meta>"
)
SQUARE = 'points="2.00,2.00;8.00,2.00;8.00,8.00;2.00,8.00"'


def write(folder: Path, shapes: str, name: str = "sub/ü &amp; 1.png") -> Path:
    path = folder / "annotations.xml"
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>{HEAD}<image id="7" name="{name}" width="30" '
        f'height="20">{shapes}</image></annotations>',
        encoding="utf-8",
    )
    return path


def decoded(path: Path) -> list[tuple[str, np.ndarray]]:
    file = read_coco(path)
    return [
        (
            file.categories[a.category_id],
            coco_mask.decode({"size": [20, 30], "counts": a.counts}).astype(bool),
        )
        for a in file.annotations
    ]


def test_kinds_of_shapes(tmp_path: Path) -> None:
    xml = write(
        tmp_path,
        f'<polygon label="zelle" {SQUARE} z_order="0"/>'
        '<mask label="a &lt;b&gt;" rle="1, 2, 2, 1" left="28" top="4" width="3" height="2"/>'
        '<ellipse label="zelle" cx="15" cy="10" rx="8" ry="3" rotation="90"/>'
        '<box label="zelle" xtl="1" ytl="1" xbr="3" ybr="3"/><tag label="zelle"/>'
        '<polyline label="zelle" points="1,2;3,4"/><polygon label="zelle" points="1,2;3,4"/>',
    )
    out = tmp_path / "out.json"
    assert convert_cvat(xml, out) == {
        "images": 1, "boxes left out": 1, "tags left out": 1, "polylines left out": 1, "instances": 3,
        "annotations without a mask left out (boxes, fewer than 3 points)": 1,
    }  # fmt: skip
    file = read_coco(out)
    assert [image.file_name for image in file.images.values()] == ["sub/ü & 1.png"]
    assert list(file.categories.values()) == ["zelle", "a <b>"]
    square, brush, disc = decoded(out)
    assert square[1].sum() == square[1][2:8, 2:8].sum() == 36
    expected = np.zeros((20, 30), bool)
    expected[4, 29] = True  # what lies in column 30 is outside
    assert brush[0] == "a <b>"
    assert np.array_equal(brush[1], expected)
    y, x = np.mgrid[:20, :30] + 0.5
    assert (disc[1] ^ (((x - 15) / 3) ** 2 + ((y - 10) / 8) ** 2 < 1)).sum() <= 8  # of about 75


def test_groups_are_instances(tmp_path: Path) -> None:
    other = 'points="12,12;16,12;16,16;12,16"'
    xml = write(
        tmp_path,
        f'<polygon label="zelle" {SQUARE} group_id="2"/><polygon label="zelle" {other} group_id="2"/>'
        f'<polygon label="a &lt;b&gt;" {other} group_id="2"/><polygon label="zelle" {other} group_id="0"/>'
        '<mask label="zelle" rle="0, 4" left="20" top="0" width="2" height="2" group_id="2"/>',
    )
    convert_cvat(xml, tmp_path / "out.json")
    assert [(name, mask.sum()) for name, mask in decoded(tmp_path / "out.json")] == [
        ("zelle", 36 + 16 + 4), ("a <b>", 16), ("zelle", 16),
    ]  # fmt: skip


def test_faults_are_told_together_with_their_places(tmp_path: Path) -> None:
    xml = write(
        tmp_path,
        '<polygon label="zelle" points="1,2;3"/><polygon points="1,2;3,4;5,6"/><polygon label="zelle"/>'
        '<mask label="zelle" rle="1, 2" left="2" top="4" width="3" height="2"/><blob label="zelle"/>'
        f'<polygon label="dust" {SQUARE}/>',
        "a.png",
    )
    with pytest.raises(CocoError) as caught:
        convert_cvat(xml, tmp_path / "out.json")
    for words in (
        "4 that are not as CVAT writes them", "image id '7', a.png: polygon 1: expected points as x,y",
        "1 without a label", "a.png: polygon 2", "polygon 3: no 'points'",
        "the runs cover 3 pixels, the mask has 3 x 2", "got blob",
        "1 of a class that is not listed", "polygon 6: 'dust', expected one of ['zelle', 'a <b>']",
    ):  # fmt: skip
        assert words in str(caught.value), words
    xml.write_text("<annotations><track/></annotations>")
    with pytest.raises(CocoError, match='tracks of a video: expected a "CVAT for images"'):
        convert_cvat(xml, tmp_path / "out.json")
    xml.write_text("<annotations>")
    with pytest.raises(CocoError, match="malformed XML"):
        convert_cvat(xml, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_what_is_written(tmp_path: Path) -> None:
    _, path = write_coco(tmp_path, annotations=[annotation(1), annotation(2, iscrowd=1)])
    assert write_cvat(path, tmp_path / "x.xml") == {
        "images": 1, "instances": 1, "crowds left out": 1,
    }  # fmt: skip
    text = (tmp_path / "x.xml").read_text()
    assert 'points="2,2;8,2;8,8;2,8"' in text
    assert "group_id" not in text
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        write_cvat(path, tmp_path / "x.xml")


def test_shapes_without_end(tmp_path: Path) -> None:
    xml = write(
        tmp_path,
        '<ellipse label="zelle" cx="5" cy="5" rx="1e999" ry="3"/>'
        '<mask label="zelle" rle="1" left="inf" top="4" width="3" height="2"/>'
        '<ellipse label="zelle" cx="5" cy="5" rx="1e300" ry="3"/>',
    )
    with pytest.raises(CocoError, match="2 that are not as CVAT writes them, 1 with a faulty"):
        convert_cvat(xml, tmp_path / "out.json")
