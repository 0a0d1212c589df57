"""LabelMe's files as people have them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from alignmask.curation.labelme import convert_labelme, write_labelme
from alignmask.data import CocoDataset, CocoError
from alignmask.data.coco_json import read_coco
from tests.commands.terminal import photo
from tests.data.coco_files import annotation, image_record, rle, write_coco

SQUARE = [[2, 2], [8, 2], [8, 8], [2, 8]]


def shape(label: str = "cell", points: Any = SQUARE, kind: str = "polygon", **more: Any) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def png(mask_HW: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask_HW).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def write(path: Path, *shapes: dict, image: str = "1.png", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "imagePath": image, "shapes": list(shapes), "imageData": None}
    path.write_text(json.dumps({**content, "imageHeight": 20, "imageWidth": 30, **more}))
    return path


def decoded(folder: Path) -> list[tuple[str, np.ndarray]]:
    file = read_coco(folder / "out.json")
    return [
        (
            file.categories[a.category_id],
            coco_mask.decode({"size": [20, 30], "counts": a.counts}).astype(bool),
        )
        for a in file.annotations
    ]


def test_kinds_of_shapes(tmp_path: Path) -> None:
    photo(tmp_path / "1.png", (20, 30))
    mask = np.array([[True, False, True], [True, True, True]])
    write(
        tmp_path / "1.json",
        shape(points=[[-5, -5], [4, -5], [4, 4], [-5, 4]]),  # negative: cut off at the image
        shape("Zelle ü", [[20, 10], [10, 5]], "rectangle"),  # from the lower right corner
        shape("Zelle ü", [[15, 10], [15, 15]], "circle"),
        shape(points=[[28, 18], [30, 19]], kind="mask", mask=png(mask)),  # one column outside
        shape(points=[[1, 1], [2, 2]], kind="line"),
        shape(points=[[1, 1], [2, 2]]),
    )
    assert convert_labelme(tmp_path, tmp_path / "out.json") == {
        "images": 1, "instances": 4, "lines and points left out": 1,
        "annotations without a mask left out (boxes, fewer than 3 points)": 1,
    }  # fmt: skip
    corner, box, disc, brush = decoded(tmp_path)
    expected = np.zeros((20, 30), bool)
    expected[:4, :4] = True
    assert corner[0] == "cell"
    assert np.array_equal(corner[1], expected)
    expected = np.zeros((20, 30), bool)
    expected[5:10, 10:20] = True
    assert box[0] == "Zelle ü"
    assert np.array_equal(box[1], expected)
    y, x = np.mgrid[:20, :30] + 0.5
    assert (disc[1] ^ (np.hypot(x - 15, y - 10) < 5)).sum() <= 6  # of about 78
    expected = np.zeros((20, 30), bool)
    expected[18:, 28:] = mask[:, :2]
    assert np.array_equal(brush[1], expected)


def test_groups_are_instances(tmp_path: Path) -> None:
    """Parts of one label; a mask and a polygon; a group of two labels is two instances."""
    photo(tmp_path / "1.png", (20, 30))
    other = [[12, 12], [16, 12], [16, 16], [12, 16]]
    brush = shape(
        points=[[20, 1], [21, 2]], kind="mask", mask=png(np.ones((2, 2), bool)), group_id=3
    )
    write(
        tmp_path / "1.json",
        shape(group_id=3), shape(points=other, group_id=3), brush,
        shape("dust", group_id=3), shape("dust", other), shape("dust", other),
    )  # fmt: skip
    convert_labelme(tmp_path, tmp_path / "out.json")
    assert [(name, mask.sum()) for name, mask in decoded(tmp_path)] == [
        ("cell", 36 + 16 + 4), ("dust", 36), ("dust", 16), ("dust", 16),
    ]  # fmt: skip


def test_where_images_are(tmp_path: Path) -> None:
    """Backslashes, another folder, subfolders, and only inside of the JSON file."""
    photo(tmp_path / "images" / "ü 1.png", (20, 30))
    photo(tmp_path / "json" / "sub" / "2.png", (20, 30))
    write(tmp_path / "json" / "1.json", shape(), image="..\\images\\ü 1.png")
    write(tmp_path / "json" / "sub" / "2.json", shape(), image="C:\\Users\\me\\2.png")
    (tmp_path / "json" / "coco.json").write_text('{"images": []}')
    counts = convert_labelme(tmp_path / "json", tmp_path / "out.json", tmp_path)
    assert counts["JSON files without shapes left out"] == 1
    files = [image.file_name for image in read_coco(tmp_path / "out.json").images.values()]
    assert files == ["images/ü 1.png", "json/sub/2.png"]
    assert [CocoDataset(tmp_path, tmp_path / "out.json")[n].size for n in (0, 1)] == [(20, 30)] * 2
    data = base64.b64encode((tmp_path / "images" / "ü 1.png").read_bytes()).decode()
    write(tmp_path / "in" / "a" / "3.json", shape(), image="gone.jpg", imageData=data)
    with pytest.raises(CocoError, match=r"whose file does not exist.*gone.jpg.*--extract writes"):
        convert_labelme(tmp_path / "in", tmp_path / "in.json")
    extracted = tmp_path / "extracted"
    convert_labelme(tmp_path / "in", tmp_path / "in.json", extract=extracted)
    assert [path.name for path in extracted.iterdir()] == ["a_3.png"]
    assert (extracted / "a_3.png").read_bytes() == (tmp_path / "images" / "ü 1.png").read_bytes()
    (image,) = read_coco(tmp_path / "in.json").images.values()
    assert image.file_name == "a_3.png"
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        convert_labelme(tmp_path / "in", tmp_path / "again.json", extract=extracted)


def test_images_outside_of_their_folder_are_told_with_the_folder_to_name(tmp_path: Path) -> None:
    """No reader would follow such names. Both are counted; the folder is the lowest that has
    all."""
    for folder in ("set/images/a", "set/other", "set/json"):
        photo(tmp_path / folder / "1.png", (20, 30))
    write(tmp_path / "set/json/1.json", shape(), image="../images/a/1.png")
    write(tmp_path / "set/json/2.json", shape(), image="../other/1.png")
    write(tmp_path / "set/json/3.json", shape(), image="1.png")
    with pytest.raises(CocoError) as caught:
        convert_labelme(tmp_path / "set/json", tmp_path / "out.json")
    text = str(caught.value)
    assert "2 whose image is outside of the images' folder" in text
    assert f"set/json/2.json: {tmp_path / 'set/other/1.png'}" in text
    assert text.rstrip(")").endswith(f"--images {tmp_path / 'set'}")
    assert not (tmp_path / "out.json").exists()
    (tmp_path / "set/json/2.json").rename(tmp_path / "2.json")
    with pytest.raises(CocoError, match="1 whose image is outside") as caught:
        convert_labelme(tmp_path / "set/json", tmp_path / "out.json")
    assert str(caught.value).rstrip(")").endswith(f"--images {tmp_path / 'set'}")
    (tmp_path / "2.json").rename(tmp_path / "set/json/2.json")
    convert_labelme(tmp_path / "set/json", tmp_path / "out.json", tmp_path / "set")
    images = read_coco(tmp_path / "out.json").images.values()
    assert [image.file_name for image in images] == [
        "images/a/1.png", "other/1.png", "json/1.png",
    ]  # fmt: skip


def test_faults_are_told_together_with_their_places(tmp_path: Path) -> None:
    photo(tmp_path / "1.png", (20, 30))
    photo(tmp_path / "2.png", (20, 31))
    write(
        tmp_path / "1.json",
        shape(points=[[1, 2], [3]]), shape(kind="blob"), {"points": SQUARE},
        shape(points=SQUARE[:2], kind="mask", mask="?"), shape(points=[[1, 2]], kind="circle"),
        shape(points=[[2e6, 1], [3, 3], [4, 1]]),
        shape(points=[[1, 1], [5, 5]], kind="mask", mask=png(np.ones((2, 2), bool))),
    )  # fmt: skip
    write(tmp_path / "2.json", shape(), image="2.png")
    write(tmp_path / "3.json", image="1.png")
    write(tmp_path / "4.json", image="")
    (tmp_path / "5.json").write_text("{")
    with pytest.raises(CocoError) as caught:
        convert_labelme(tmp_path, tmp_path / "out.json")
    text = str(caught.value)
    for kind, place in (
        ("1 of shapes whose points are not pairs", "1.json: shapes[0]"),
        ("1 of shapes of an unknown kind", "1.json: shapes[1]: 'blob', expected one of polygon"),
        ("1 of shapes without a label", "1.json: shapes[2]"),
        ("1 of masks that are no PNG", "1.json: shapes[3]"),
        ("1 of shapes with another number of points", "1.json: shapes[4]: a circle has 2, got 1"),
        ("1 with a faulty segmentation", "1.json: shapes[5]: polygon coordinates must be finite"),
        ("1 of masks of another size", "1.json: shapes[6]: 2 x 2 pixels"),
        ("1 whose file has another size", "2.png has 20 x 31 pixels"),
        ("1 of images with two files", "3.json and"),
        ("1 of files without an imagePath", "4.json: ''"),
        ("1 of JSON files that cannot be read", "5.json: "),
    ):
        assert kind in text
        assert place in text
    assert not (tmp_path / "out.json").exists()


def test_classes_and_folders(tmp_path: Path) -> None:
    """Two parts of a data set get the same ids; what is not in the list is refused."""
    photo(tmp_path / "1.png", (20, 30))
    write(tmp_path / "1.json", shape("b"), shape("c"))
    convert_labelme(tmp_path, tmp_path / "out.json", classes=["c", "a", "b"])
    assert read_coco(tmp_path / "out.json").categories == {1: "c", 2: "a", 3: "b"}
    with pytest.raises(CocoError, match=r"1 of a class that is not listed\n.*shapes\[0\]: 'b'"):
        convert_labelme(tmp_path, tmp_path / "o.json", classes=["c", "a"])
    with pytest.raises(CocoError, match="no such folder"):
        convert_labelme(tmp_path / "nowhere", tmp_path / "o.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocoError, match="no LabelMe file in it"):
        convert_labelme(tmp_path / "empty", tmp_path / "o.json")


def test_what_is_written(tmp_path: Path) -> None:
    """LabelMe opens it: the path of the image leads from the file to it."""
    ring = np.zeros((20, 30), bool)
    ring[2:10, 2:10], ring[4:6, 4:6] = True, False
    images, path = write_coco(
        tmp_path,
        annotations=[
            annotation(1, segmentation=[[1, 1, 5, 1, 5, 5.5], [9, 9, 12, 9, 12, 12]]),
            annotation(2, segmentation=rle(ring)),
            annotation(3, iscrowd=1),
        ],
    )
    counts = write_labelme(path, tmp_path / "deep" / "labelme", images)
    assert counts == {
        "images": 1, "instances": 2, "crowds left out": 1,
        "masks with holes, as shapes of the kind mask": 1,
    }  # fmt: skip
    target = tmp_path / "deep" / "labelme" / "1.json"
    content = json.loads(target.read_text())
    assert (target.parent / content["imagePath"]).resolve() == images / "1.png"
    first, second, mask = content["shapes"]
    assert first["points"] == [[1, 1], [5, 1], [5, 5.5]]
    assert first["group_id"] == second["group_id"] is not None
    assert (mask["shape_type"], mask["points"]) == ("mask", [[2, 2], [9, 9]])
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        write_labelme(path, tmp_path / "deep" / "labelme")
    twins = [{**image_record(1), "file_name": "a.png"}, {**image_record(2), "file_name": "a.jpg"}]
    _, path = write_coco(tmp_path, twins)
    with pytest.raises(CocoError, match="1 of images that would have one file"):
        write_labelme(path, tmp_path / "other")
