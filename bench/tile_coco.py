"""Cuts a COCO data set into square tiles: many small instances an image become few larger ones a
tile.

    python bench/tile_coco.py INSTANCES.json IMAGES OUT --tile 128 --stride 64

writes OUT/images/*.png and OUT/instances.json. Tiles lie `stride` apart, the last ones at the right
and lower edge, so that every pixel is in one; an image smaller than a tile stays whole. What is
left of an instance in a tile becomes an instance of its own; fragments of fewer than `--smallest`
pixels become crowd regions, which training leaves out and COCO's evaluation ignores. Boxes and
areas are those of the masks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO


def starts(side: int, tile: int, stride: int) -> list[int]:
    """First pixels of the tiles along one side: every `stride`, and one that ends with the
    image."""
    last = max(0, side - tile)
    return sorted({*range(0, last, stride), last})


def cut(
    annotations: Path, images: Path, out: Path, tile: int, stride: int, smallest: int = 16
) -> tuple[int, int]:
    """Write the tiled data set; returns the numbers of tiles and instances (without crowd regions).

    Raises ValueError unless 0 < stride <= tile, and FileExistsError if `out` is there already.
    """
    if not 0 < stride <= tile:
        raise ValueError(f"expected 0 < stride <= tile, got stride {stride} and tile {tile}")
    (out / "images").mkdir(parents=True)
    coco = COCO(annotations)
    tiles: list[dict] = []
    pieces: list[dict] = []
    for image_id, image in sorted(coco.imgs.items()):
        instances = coco.imgToAnns[image_id]
        masks_NHW = np.array([coco.annToMask(instance) for instance in instances], dtype=np.uint8)
        with Image.open(images / image["file_name"]) as opened:
            pixels = opened.convert("RGB")
        for top in starts(image["height"], tile, stride):
            for left in starts(image["width"], tile, stride):
                width, height = min(tile, image["width"]), min(tile, image["height"])
                name = f"{Path(image['file_name']).stem}_{top}_{left}.png"
                pixels.crop((left, top, left + width, top + height)).save(out / "images" / name)
                tiles.append(
                    {"id": len(tiles) + 1, "file_name": name, "width": width, "height": height}
                )
                for instance, mask_HW in zip(instances, masks_NHW, strict=True):
                    rle = coco_mask.encode(
                        np.asfortranarray(mask_HW[top : top + height, left : left + width])
                    )
                    area = int(coco_mask.area(rle))
                    if area == 0:
                        continue
                    pieces.append(
                        {
                            "id": len(pieces) + 1,
                            "image_id": len(tiles),
                            "category_id": instance["category_id"],
                            "iscrowd": int(instance["iscrowd"] or area < smallest),
                            "area": area,
                            "bbox": coco_mask.toBbox(rle).tolist(),
                            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                        }
                    )
    world = {"images": tiles, "annotations": pieces, "categories": coco.dataset["categories"]}
    (out / "instances.json").write_text(json.dumps(world))
    return len(tiles), sum(not piece["iscrowd"] for piece in pieces)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--smallest", type=int, default=16)
    arguments = parser.parse_args()
    tiles, instances = cut(**vars(arguments))
    print(f"{arguments.out}: {tiles} tiles, {instances} instances")


if __name__ == "__main__":
    main()
