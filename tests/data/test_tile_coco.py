"""bench/tile_coco.py: nothing is lost at the edges of tiles."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.conftest import bench_module
from tests.data.coco_files import annotation, image_record, rle


@pytest.fixture(scope="module")
def tiles() -> ModuleType:
    return bench_module("tile_coco")


@given(side=st.integers(1, 400), tile=st.integers(1, 200), data=st.data())
def test_every_pixel_is_in_a_tile(
    tiles: ModuleType, side: int, tile: int, data: st.DataObject
) -> None:
    starts = tiles.starts(side, tile, data.draw(st.integers(1, tile)))
    covered = np.zeros(side, dtype=bool)
    for start in starts:
        assert start == 0 or 0 < start <= side - tile
        covered[start : start + tile] = True
    assert covered.all()
    assert len(set(starts)) == len(starts)


def test_tiles_put_together_are_the_image(tiles: ModuleType, tmp_path: Path) -> None:
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

    count_tiles, instances = tiles.cut(
        tmp_path / "a.json", tmp_path, tmp_path / "out", 64, 50, smallest=30
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

    with pytest.raises(FileExistsError):
        tiles.cut(tmp_path / "a.json", tmp_path, tmp_path / "out", 64, 64)
    with pytest.raises(ValueError, match="stride 65"):
        tiles.cut(tmp_path / "a.json", tmp_path, tmp_path / "other", 64, 65)
