"""`alignmask data`: the commands do what the functions do, and say it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from alignmask.data.coco_json import read_coco
from tests.commands.terminal import Terminal
from tests.data.coco_files import annotation, image_record, write_coco


def test_check_and_fix(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path)
    assert alignmask_("data", "check", path, "--images", images) == 0
    assert "nothing that training or evaluation would refuse" in alignmask_.out
    pairs = annotation(segmentation=[[[2, 2], [8, 2], [8, 8], [2, 8]]])
    _, path = write_coco(tmp_path, annotations=[pairs])
    assert alignmask_("data", "check", path, "--images", images) == 1
    assert "1 whose points are pairs [x, y]" in alignmask_.out
    mended = tmp_path / "mended.json"
    assert alignmask_("data", "check", path, "--images", images, "--fix", mended) == 0
    assert f"{mended}: 1 polygons of pairs made flat" in alignmask_.out
    assert read_coco(mended).annotations[0].pixels == 36
    assert "nothing is overwritten" in alignmask_.complaint("data", "check", path, "--fix", mended)
    assert "one file at a time" in alignmask_.complaint(
        "data", "check", path, path, "--fix", "x.json"
    )


def test_two_files_are_searched_for_common_images(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path)
    (tmp_path / "val.json").write_text(path.read_text())
    assert alignmask_("data", "check", path, tmp_path / "val.json", "--images", images) == 0
    assert f"1 image in both {path} and {tmp_path / 'val.json'}: 1.png and 1.png" in alignmask_.out


def test_stats_with_a_picture(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path, [image_record(n) for n in range(1, 4)])
    arguments = (
        "--images",
        images,
        "--picture",
        tmp_path / "p.png",
        "--to-json",
        tmp_path / "s.json",
    )
    assert alignmask_("data", "stats", path, *arguments) == 0
    assert "3 images, 1 instance (1 small" in alignmask_.out
    assert json.loads((tmp_path / "s.json").read_text())["per_class"] == {"thing": 1}
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 3 * 320
        assert np.asarray(picture).std() > 0
    text = alignmask_.complaint("data", "stats", path, "--picture", tmp_path / "q.png")
    assert "--picture needs --images" in text


def test_split_tile_and_yolo(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path, [image_record(n) for n in range(1, 6)])
    assert alignmask_("data", "split", path, "--out", tmp_path / "s", "--share", "0.4") == 0
    assert alignmask_.out == f"{tmp_path / 's'}: 3 images for training, 2 for validation\n"
    arguments = ("--images", images, "--out", tmp_path / "t", "--tile", 16)
    assert alignmask_("data", "tile", path, *arguments) == 0
    assert alignmask_.out == f"{tmp_path / 't'}: 20 tiles, 2 instances\n"
    assert alignmask_("data", "to-yolo", path, "--out", tmp_path / "y") == 0
    assert alignmask_.out == f"{tmp_path / 'y'}: 1 instances, 5 images\n"
    back = tmp_path / "back.json"
    labels = tmp_path / "y" / "labels"
    assert alignmask_("data", "from-yolo", labels, "--out", back, "--images", images) == 0
    assert alignmask_.out == f"{back}: 5 images, 1 instances\n"


def test_from_cvat(alignmask_: Terminal, tmp_path: Path) -> None:
    xml = tmp_path / "annotations.xml"
    xml.write_text(
        "<annotations><meta><task><labels><label><name>cell</name></label></labels></task></meta>"
        '<image id="0" name="1.png" width="30" height="20">'
        '<polygon label="cell" points="2,2;8,2;8,8;2,8" occluded="0"/></image></annotations>'
    )
    out = tmp_path / "out.json"
    assert alignmask_("data", "from-cvat", xml, "--out", out) == 0
    file = read_coco(out)
    assert list(file.categories.values()) == ["cell"]
    assert [a.pixels for a in file.annotations] == [36]
    assert "nothing is overwritten" in alignmask_.complaint("data", "from-cvat", xml, "--out", out)


def test_what_is_no_cvat_file(alignmask_: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotations></annotations>")
    text = alignmask_.complaint(
        "data", "from-cvat", tmp_path / "a.xml", "--out", tmp_path / "o.json"
    )
    assert f"{tmp_path / 'a.xml'}: no image in it" in text
    assert "no such file" in alignmask_.complaint(
        "data", "from-cvat", tmp_path / "b", "--out", "o.json"
    )
    assert not (tmp_path / "o.json").exists()


def test_stats_overwrites_nothing(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path)
    (tmp_path / "mine").write_text("mine")
    for option in ("--to-json", "--picture"):
        said = alignmask_.complaint(
            "data", "stats", path, "--images", images, option, tmp_path / "mine"
        )
        assert "mine exists already: nothing is overwritten" in said
    assert (tmp_path / "mine").read_text() == "mine"


def test_images_of_32_bits(alignmask_: Terminal, tmp_path: Path) -> None:
    images, path = write_coco(tmp_path)
    samples = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    Image.fromarray(samples).save(images / "1.tif")
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "1.tif"
    path.write_text(json.dumps(content))
    check = ("data", "check", path, "--images", images)
    assert alignmask_(*check) == 1
    assert "or --sample-range of `predict` and `data`" in alignmask_.out
    assert alignmask_(*check, "--sample-range", 0, 1) == 0
    stats = ("data", "stats", path, "--images", images, "--picture")
    assert alignmask_(*stats, tmp_path / "a.png") == 2
    assert alignmask_(*stats, tmp_path / "b.png", "--sample-range", 0, 1) == 0
