"""Pascal VOC's masks as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from alignmask.curation.voc import CLASSES, PALETTE, convert_voc, write_voc
from alignmask.data import CocoError
from alignmask.data.coco_json import read_coco
from tests.commands.terminal import photo
from tests.data.coco_files import annotation, image_record, rle, write_coco

SIZE = (20, 30)


def layout(folder: Path, **masks: tuple[np.ndarray, np.ndarray]) -> Path:
    """Masks of indices (2 dimensions) or of colours (3), by the name of the image."""
    for name, pair in masks.items():
        photo(folder / "JPEGImages" / f"{name}.jpg", SIZE)
        for kind, values in zip(("SegmentationObject", "SegmentationClass"), pair, strict=True):
            (folder / kind).mkdir(exist_ok=True)
            picture = Image.fromarray(values.astype(np.uint8))
            if values.ndim == 2:
                picture.putpalette([value for colour in PALETTE for value in colour])
            picture.save(folder / kind / f"{name}.png")
    return folder


def two_things() -> tuple[np.ndarray, np.ndarray]:
    """A dog (12), and a person (15) in two parts, with a border of void around the dog."""
    objects, classes = np.zeros(SIZE, int), np.zeros(SIZE, int)
    objects[2:8, 2:8] = classes[2:8, 2:8] = 255
    objects[3:7, 3:7], classes[3:7, 3:7] = 1, 12
    objects[10:12, 10:14], classes[10:12, 10:14] = 2, 15
    objects[15:17, 10:14], classes[15:17, 10:14] = 2, 15
    return objects, classes


def found(path: Path) -> dict[str, np.ndarray]:
    file = read_coco(path)
    return {
        file.categories[a.category_id]: coco_mask.decode({"size": list(SIZE), "counts": a.counts})
        for a in file.annotations
    }


def test_the_palette_is_that_of_voc() -> None:
    assert PALETTE[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert PALETTE[15] == (192, 128, 128)  # person
    assert PALETTE[20] == (0, 64, 128)  # tvmonitor
    assert PALETTE[255] == (224, 224, 192)  # void


def test_void_and_parts(tmp_path: Path) -> None:
    objects, classes = two_things()
    layout(tmp_path, a=(objects, classes), b=(objects * 0, classes * 0))
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")
    counts = convert_voc(tmp_path, tmp_path / "all.json")
    assert counts == {"classes, named as in Pascal VOC": 20, "images": 2, "instances": 2}
    masks = found(tmp_path / "all.json")
    assert np.array_equal(masks["dog"], objects == 1)
    assert np.array_equal(masks["person"], objects == 2)
    assert list(read_coco(tmp_path / "all.json").categories.values()) == list(CLASSES)
    assert convert_voc(tmp_path, tmp_path / "val.json", split="val")["images"] == 1
    with pytest.raises(CocoError, match=r"train.txt: no such file; there are: val"):
        convert_voc(tmp_path, tmp_path / "train.json", split="train")


def test_masks_in_colours(tmp_path: Path) -> None:
    """As CVAT writes them: labelmap.txt says the colours of classes, those of instances are any."""
    objects, classes = two_things()
    colours = np.array([(0, 0, 0)] * 256)
    colours[[1, 2, 12, 15]] = (9, 8, 7), (7, 8, 9), (250, 50, 83), (52, 209, 183)
    colours[255] = PALETTE[255]
    layout(tmp_path, a=(colours[objects], colours[classes]))
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nPerson: a:52,209,183::\ndog:250,50,83::\n"
    )
    convert_voc(tmp_path, tmp_path / "out.json")
    masks = found(tmp_path / "out.json")
    assert np.array_equal(masks["dog"], objects == 1)
    assert np.array_equal(masks["Person: a"], objects == 2)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ndog:250,50,83::\n")
    with pytest.raises(CocoError, match=r"a.png: the colour \(52, 209, 183\) is of no class"):
        convert_voc(tmp_path, tmp_path / "o.json")
    (tmp_path / "labelmap.txt").write_text("dog\n")
    with pytest.raises(CocoError, match=r"labelmap.txt:1: expected `name:red,green,blue"):
        convert_voc(tmp_path, tmp_path / "o.json")


def test_names_of_classes(tmp_path: Path) -> None:
    objects, classes = two_things()
    classes[3, 3] = 15
    classes[objects == 2] = 255
    layout(tmp_path, a=(objects, classes))
    (tmp_path / "class_names.txt").write_text(
        "\n".join(["_background_", *(f"c{n}" for n in range(1, 16))])
    )
    counts = convert_voc(tmp_path, tmp_path / "out.json")
    assert list(found(tmp_path / "out.json")) == ["c12"]
    assert counts == {
        "images": 1, "instances": 1, "instances of background or void left out": 1,
        "instances with pixels of several classes, of which the most counts": 1,
    }  # fmt: skip
    with pytest.raises(CocoError, match=r"1 of a class that has no name\n.*instance 1: class 12"):
        convert_voc(tmp_path, tmp_path / "o.json", classes=["x"])


def test_faults_are_told_together(tmp_path: Path) -> None:
    layout(tmp_path, a=two_things(), b=two_things(), c=two_things(), d=two_things())
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "SegmentationClass" / "b.png").unlink()
    (tmp_path / "SegmentationObject" / "c.png").write_bytes(b"no image")
    photo(tmp_path / "JPEGImages" / "d.jpg", (20, 31))
    with pytest.raises(CocoError) as caught:
        convert_voc(tmp_path, tmp_path / "out.json")
    for words in (
        "1 of masks without an image", "1 of masks that do not exist", "1 that cannot be read",
        "1 of masks of another size", "d.png: 20 x 30 pixels (height x width), the image has 20 x 31",
    ):  # fmt: skip
        assert words in str(caught.value)
    with pytest.raises(CocoError, match="there is no SegmentationObject"):
        convert_voc(tmp_path / "JPEGImages", tmp_path / "o.json")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pixels = [np.arange(600).reshape(SIZE) == n for n in range(255)]
    twins = [{**image_record(1), "file_name": "a/1.png"}, {**image_record(2), "file_name": "1.jpg"}]
    (tmp_path / "images" / "a").mkdir(parents=True)
    many = [annotation(n, segmentation=rle(mask)) for n, mask in enumerate(pixels)]
    _, path = write_coco(tmp_path, twins, many, [{"id": 1, "name": "a\nb"}])
    with pytest.raises(CocoError) as caught:
        write_voc(path, tmp_path / "voc")
    for words in ("2 of images that would have one mask", "1 with more than 254 instances",
                  "image id 1: 255", "1 of class names of several lines"):  # fmt: skip
        assert words in str(caught.value)
    assert not (tmp_path / "voc").exists()


def test_instance_255_of_a_mask_of_16_bits_is_no_void(tmp_path: Path) -> None:
    objects = np.zeros(SIZE, np.uint16)
    objects[1, :3] = 254, 255, 256
    layout(tmp_path, a=(objects > 0, (objects > 0) * 15))
    Image.fromarray(objects).save(tmp_path / "SegmentationObject" / "a.png")
    assert convert_voc(tmp_path, tmp_path / "out.json")["instances"] == 3
