"""Cuts a data set into square tiles: many small instances an image become few larger ones each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from alignmask._files import must_be_new, new_folder, write_json
from alignmask.data.coco_json import fault, read_coco
from alignmask.data.faults import Faults
from alignmask.data.file_names import find_files
from alignmask.data.images import Exif, ImageError, SampleRange, read_image
from alignmask.data.records import CocoFile


def starts(side: int, tile: int, stride: int) -> list[int]:
    """First pixels of the tiles along one side: every `stride`, and one that ends with the
    image."""
    last = max(0, side - tile)
    return sorted({*range(0, last, stride), last})


def cut_into_tiles(
    annotations: Path,
    images: Path,
    out: Path,
    *,
    tile: int = 512,
    stride: int | None = None,
    smallest: int = 16,
    exif: Exif = "auto",
    sample_range: SampleRange | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write OUT/images/*.png and OUT/instances.json; returns the numbers of tiles and of instances.

    What is left of an instance in a tile becomes an instance of its own; fragments of fewer than
    `smallest` pixels become crowd regions, which training leaves out and COCO's evaluation ignores.
    Boxes and areas are those of the masks. An image smaller than a tile stays whole.

    Args:
        tile: Side of the tiles, in pixels.
        stride: Distance of neighbouring tiles; `tile` by default, so that they do not overlap.
        exif, sample_range: As in `read_image`. Tiles are upright and have 8 bits a sample.

    Raises:
        ValueError: Unless 0 < stride <= tile.
        FileExistsError: `out` exists.
        CocoError: A fault of the annotation file or of an image; nothing is left in `out` then.
    """
    stride = tile if stride is None else stride
    if not 0 < stride <= tile:
        raise ValueError(
            f"data tile: expected 0 < stride <= tile, got stride {stride}, tile {tile}"
        )
    must_be_new(out, "data tile")
    file, faults = read_coco(annotations, images=images), Faults()
    file.warn_left_out()
    records = list(file.images.values())
    names, _ = find_files(
        images,
        [record.file_name or "" for record in records],
        [f"image id {record.id}" for record in records],
        faults,
    )
    faults.raise_if_any(str(annotations), f"images in {images}")
    with new_folder(out) as part:
        (part / "images").mkdir()
        world = _cut(
            file, [images / name for name in names], part / "images",
            (tile, stride, smallest), (exif, sample_range), progress,
        )  # fmt: skip
        write_json(part / "instances.json", world)
    return len(world["images"]), sum(not piece["iscrowd"] for piece in world["annotations"])


def _cut(
    file: CocoFile,
    paths: list[Path],
    folder: Path,
    sizes: tuple[int, int, int],
    reading: tuple[Exif, SampleRange | None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    tile, stride, smallest = sizes
    exif, sample_range = reading
    by_image: dict[int, list[Any]] = {image_id: [] for image_id in file.images}
    for annotation in file.annotations:
        by_image[annotation.image_id].append(annotation)
    tiles: list[dict[str, Any]] = []
    pieces: list[dict[str, Any]] = []
    unique = len({path.stem for path in paths}) == len(paths)
    for number, (image, path) in enumerate(zip(file.images.values(), paths, strict=True)):
        size = (image.height, image.width)
        try:
            image_CHW = read_image(path, size, exif=exif, sample_range=sample_range)
        except ImageError as error:
            raise fault(file.path, str(error), image.id) from error
        if tuple(image_CHW.shape[1:]) != size:
            text = f"{path}: the file has {tuple(image_CHW.shape[1:])} pixels, the JSON says {size}"
            raise fault(file.path, text, image.id)
        pixels_HWC = image_CHW.permute(1, 2, 0).numpy()
        annotations = by_image[image.id]
        # One mask at a time: all of a large image's may not fit into memory.
        boxes = [
            coco_mask.toBbox({"size": list(size), "counts": a.counts}).astype(int)
            for a in annotations
        ]
        stem = path.stem if unique else f"{image.id}_{path.stem}"
        windows = []
        for top in starts(size[0], tile, stride):
            for left in starts(size[1], tile, stride):
                height, width = min(tile, size[0]), min(tile, size[1])
                name = f"{stem}_{top}_{left}.png"
                Image.fromarray(
                    np.ascontiguousarray(pixels_HWC[top : top + height, left : left + width])
                ).save(folder / name)
                tiles.append(
                    {"id": len(tiles) + 1, "file_name": name, "width": width, "height": height}
                )
                windows.append((len(tiles), top, left, height, width))
        for annotation, (x, y, w, h) in zip(annotations, boxes, strict=True):
            mask_HW = coco_mask.decode({"size": list(size), "counts": annotation.counts})
            for tile_id, top, left, height, width in windows:
                if y >= top + height or y + h <= top or x >= left + width or x + w <= left:
                    continue
                window = mask_HW[top : top + height, left : left + width]
                rle = coco_mask.encode(np.asfortranarray(window))
                area = int(coco_mask.area(rle))
                if area == 0:
                    continue
                pieces.append(
                    {
                        "id": len(pieces) + 1,
                        "image_id": tile_id,
                        "category_id": annotation.category_id,
                        "iscrowd": int(
                            annotation.crowd or (area < smallest and area < annotation.pixels)
                        ),
                        "area": area,
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
        progress(number + 1, len(paths))
    categories = [{"id": i, "name": name} for i, name in file.categories.items()]
    return {"images": tiles, "annotations": pieces, "categories": categories}
