"""Tiles: nothing is lost at their edges, and nothing half-made is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from alignmask.curation.tile import cut_into_tiles, starts
from alignmask.data import CocoError
from tests.data.coco_files import annotation, box_polygon, image_record, rle, write_coco


@given(side=st.integers(1, 400), tile=st.integers(1, 200), data=st.data())
def test_every_pixel_is_in_a_tile(side: int, tile: int, data: st.DataObject) -> None:
    found = starts(side, tile, data.draw(st.integers(1, tile)))
    covered = np.zeros(side, dtype=bool)
    for start in found:
        assert start == 0 or 0 < start <= side - tile
        covered[start : start + tile] = True
    assert covered.all()
    assert len(set(found)) == len(found)


def test_tiles_put_together_are_the_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    height, width, count = 150, 200, 12
    # An alpha channel, which tiles drop.
    pixels_HWC = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    masks_NHW = np.zeros((count, height, width), dtype=np.uint8)
    for mask_HW in masks_NHW:
        top, left = rng.integers(0, height - 40), rng.integers(0, width - 40)
        mask_HW[top : top + rng.integers(3, 40), left : left + rng.integers(3, 40)] = 1
    Image.fromarray(pixels_HWC).save(tmp_path / "a.png")
    annotations = [
        annotation(i + 1, 7, 3, rle(mask_HW), iscrowd=int(i == 0), area=int(mask_HW.sum()))
        for i, mask_HW in enumerate(masks_NHW)
    ]
    world = {
        "images": [{**image_record(7, height, width), "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(world))

    count_tiles, instances = cut_into_tiles(
        tmp_path / "a.json", tmp_path, tmp_path / "out", tile=64, stride=50, smallest=30
    )
    coco = COCO(tmp_path / "out/instances.json")
    assert count_tiles == len(coco.imgs) == 3 * 4
    together_HW = np.zeros((height, width), dtype=np.int64)
    expected_HW = np.zeros((height, width), dtype=np.int64)
    live = 0
    for tile in coco.imgs.values():
        top, left = map(int, Path(tile["file_name"]).stem.split("_")[1:])
        window = np.s_[top : top + tile["height"], left : left + tile["width"]]
        with Image.open(tmp_path / "out/images" / tile["file_name"]) as opened:
            assert np.array_equal(np.asarray(opened), pixels_HWC[window][..., :3])
        expected_HW[window] += masks_NHW[(slice(None), *window)].sum(axis=0, dtype=np.int64)
        for piece in coco.imgToAnns[tile["id"]]:
            mask_HW = coco.annToMask(piece)
            together_HW[window] += mask_HW
            assert piece["category_id"] == 3
            assert piece["area"] == mask_HW.sum() > 0
            assert (
                piece["bbox"]
                == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask_HW))).tolist()
            )
            of_crowd = np.array_equal(mask_HW, masks_NHW[0][window])
            assert piece["iscrowd"] == (piece["area"] < 30 or of_crowd)
            live += not piece["iscrowd"]
    assert np.array_equal(together_HW, expected_HW)
    assert live == instances < sum(1 for _ in coco.anns)

    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        cut_into_tiles(tmp_path / "a.json", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="stride 65"):
        cut_into_tiles(tmp_path / "a.json", tmp_path, tmp_path / "other", tile=64, stride=65)


def damage_json(images: Path, path: Path) -> None:
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 9'))


def damage_image(images: Path, path: Path) -> None:
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:-200])


def remove_image(images: Path, path: Path) -> None:
    (images / "2.png").unlink()


def other_size(images: Path, path: Path) -> None:
    Image.new("RGB", (5, 5)).save(images / "2.png")


@pytest.mark.parametrize("damage", [damage_json, damage_image, remove_image, other_size])
def test_nothing_half_made_is_left(tmp_path: Path, damage: Callable[[Path, Path], None]) -> None:
    images, path = write_coco(tmp_path, [image_record(1), image_record(2)])
    damage(images, path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CocoError):
        cut_into_tiles(path, images, tmp_path / "out", tile=10)
    assert sorted(tmp_path.iterdir()) == before


def test_photos_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Turned upright like everywhere else; their tiles do not overwrite one another."""
    images, path = write_coco(tmp_path, [image_record(1, 30, 20), image_record(2)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, name in (("a", "1.png"), ("b", "2.png")):
        (images / folder).mkdir()
        with Image.open(images / name) as image:
            turned = image.transpose(Image.Transpose.ROTATE_90) if name == "1.png" else image
            turned.save(images / folder / "x.png", **({"exif": exif} if folder == "a" else {}))
    text = path.read_text().replace('"1.png"', '"a/x.png"').replace('"2.png"', '"b/x.png"')
    path.write_text(text)
    assert cut_into_tiles(path, images, tmp_path / "out", tile=64) == (2, 1)
    names = [file.name for file in sorted((tmp_path / "out" / "images").iterdir())]
    assert names == ["1_x_0_0.png", "2_x_0_0.png"]
    with (
        Image.open(tmp_path / "out" / "images" / names[0]) as tile,
        Image.open(images / "1.png") as want,
    ):
        assert np.array_equal(np.asarray(tile), np.asarray(want))


def test_whole_small_instances_stay_instances_and_names_stay_apart(tmp_path: Path) -> None:
    records = [{**image_record(n), "file_name": name} for n, name in
               enumerate(("a/x.png", "b/x.png", "1_x.png"), 1)]  # fmt: skip
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    small = annotation(segmentation=box_polygon(2, 2, 5, 5))
    images, path = write_coco(tmp_path, records, [small])
    assert cut_into_tiles(path, images, tmp_path / "out", tile=64) == (3, 1)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3
