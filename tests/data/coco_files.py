"""Small COCO-format data sets on disk, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """A mask as compressed RLE, as JSON has it."""
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def counts(mask_HW: np.ndarray) -> list[int]:
    """A mask's uncompressed RLE counts, the slow and obvious way."""
    result, value = [0], 0
    for pixel in mask_HW.T.reshape(-1).tolist():
        if pixel != value:
            result.append(0)
            value = pixel
        result[-1] += 1
    return result


def box_polygon(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(
    id: int = 1, image_id: int = 1, category_id: int = 1, segmentation: Any = None, **more: Any
) -> dict:
    segmentation = box_polygon(2, 2, 8, 8) if segmentation is None else segmentation
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        **more,
    }


def image_record(id: int = 1, height: int = 20, width: int = 30) -> dict:
    return {"id": id, "file_name": f"{id}.png", "height": height, "width": width}


def write_coco(
    folder: Path,
    images: list[dict] | None = None,
    annotations: list[dict] | None = None,
    categories: list[dict] | None = None,
) -> tuple[Path, Path]:
    """Write the JSON and a noise image for every record; by default one image with one instance.

    Returns the arguments `images` and `annotations` of a CocoDataset.
    """
    content = {
        "images": [image_record()] if images is None else images,
        "annotations": [annotation()] if annotations is None else annotations,
        "categories": [{"id": 1, "name": "thing"}] if categories is None else categories,
    }
    (folder / "images").mkdir(exist_ok=True)
    for record in content["images"]:
        pixels = np.random.default_rng(record["id"]).integers(
            0, 256, (record["height"], record["width"], 3)
        )
        file = folder / "images" / record["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return folder / "images", path
