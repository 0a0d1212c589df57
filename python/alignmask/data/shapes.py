"""The built-in synthetic data set in COCO format: textured shapes on textured backgrounds, with
occlusion.

Classes differ only in shape; colours, textures, sizes and angles have the same distribution for all
of them, so that a model has to look at outlines. An instance's mask is what is visible of it. Image
i of a split depends on i, the split and the settings, but for the numbers of images.

Dimensions: H x W pixels, N instances of one image.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

if TYPE_CHECKING:
    from alignmask.config import ShapesConfig


CLASSES = (
    "circle", "square", "triangle", "star", "ring", "cross", "pentagon", "spark", "frame", "semicircle", "crescent", "tee"
)  # fmt: skip
SPLITS = ("train", "val")
MARKER = "shapes.json"

_VERSION = 2  # raise it when the same settings give different images
_DIAMETER = (0.14, 0.6)  # of the image's side
_SMALLEST_DIAMETER = 8.0  # pixels
_VISIBLE_PIXELS = 12
_EMPTY_SHARE = 0.02  # of the images have no instance
_ATTEMPTS = 8


def generate(config: ShapesConfig) -> None:
    """Write the data set below `config.root` unless it is there already.

    Writes train/*.png, val/*.png, instances_train.json, instances_val.json and a marker with the
    settings. The folder appears complete or not at all, also when several processes ask for it at
    once. Raises ValueError for impossible settings, and FileExistsError if the root holds a data
    set with other settings, which a training run may be reading, or anything else that this
    function did not write.
    """
    if (
        config.size < 32
        or min(config.train_images, config.val_images, config.max_instances) < 1
        or config.seed < 0
    ):
        raise ValueError(f"shapes: expected size >= 32, counts >= 1 and seed >= 0, got {config}")
    if not (
        1 <= config.classes <= len(CLASSES)
        and 0 <= config.crowding <= 1
        and 0 < config.visible_share <= 1
    ):
        raise ValueError(
            f"shapes: expected 1 to {len(CLASSES)} classes, crowding in [0, 1] and visible_share "
            f"in (0, 1], got {config}"
        )
    root = Path(config.root)
    root.parent.mkdir(parents=True, exist_ok=True)
    wanted = _settings(config)
    with FileLock(root.parent / f".{root.name}.lock"):
        present = _present_settings(root)
        if present == wanted:
            return
        if present is not None:
            changed = [
                f"{name} {present.get(name)} -> {value}"
                for name, value in wanted.items()
                if present.get(name) != value
            ]
            raise FileExistsError(
                f"{root}: holds synthetic images of other settings ({', '.join(changed)}): choose "
                "another "
                "--data.shapes.root, or delete it if nothing uses it"
            )
        count = f"{config.train_images} + {config.val_images} images"
        print(f"shapes: generating {count} in {root} (first use)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as workshop:
            new = Path(workshop) / "new"
            for number, split in enumerate(SPLITS):
                _write_split(config, new, split, number)
            (new / MARKER).write_text(json.dumps(wanted, indent=1))
            if root.exists():
                root.rmdir()  # it is empty, as _present_settings saw
            new.rename(root)


def _settings(config: ShapesConfig) -> dict[str, Any]:
    settings = asdict(config)
    del settings["root"]
    return {"version": _VERSION, **settings}


def _present_settings(root: Path) -> dict[str, Any] | None:
    """Settings of the data set at root, None if there is none. Raises FileExistsError for anything
    else there."""
    if (root / MARKER).is_file():
        # Settings that are younger than the data set have their default there.
        return {
            "classes": 6,
            "crowding": 0.0,
            "visible_share": 0.3,
            **json.loads((root / MARKER).read_text()),
        }
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"{root}: holds something that is not a synthetic data set (there is no {MARKER}); "
            "choose another root"
        )
    return None


def _write_split(config: ShapesConfig, root: Path, split: str, split_number: int) -> None:
    (root / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(getattr(config, f"{split}_images")):
        rng = np.random.default_rng((config.seed, split_number, index))
        image_HWC, masks_NHW, labels = draw(
            rng,
            config.size,
            config.max_instances,
            config.classes,
            config.crowding,
            config.visible_share,
        )
        name = f"{index:06d}.png"
        Image.fromarray(image_HWC).save(root / split / name, compress_level=1)
        images.append(
            {"id": index + 1, "file_name": name, "height": config.size, "width": config.size}
        )
        rles = coco_mask.encode(np.asfortranarray(masks_NHW.transpose(1, 2, 0), dtype=np.uint8))
        for label, rle in zip(labels, rles, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "area": int(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": "AlignMask synthetic shapes", "split": split},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": label + 1, "name": name} for label, name in enumerate(CLASSES[: config.classes])
        ],
    }
    (root / f"instances_{split}.json").write_text(json.dumps(content))


def draw(
    rng: np.random.Generator,
    size: int,
    max_instances: int,
    classes: int = 6,
    crowding: float = 0.0,
    visible_share: float = 0.3,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One image: uint8 [H, W, 3], the visible masks as bool [N, H, W], and the labels (indices into
    CLASSES)."""
    colors = [rng.uniform(20, 235, 3)]
    image_HWC = _texture(rng, size, colors[0])
    masks: list[np.ndarray] = []
    full_areas: list[int] = []
    labels: list[int] = []
    wanted = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, max_instances + 1))
    for _ in range(wanted):
        label = int(rng.integers(classes))
        for _ in range(_ATTEMPTS):
            crowded = bool(crowding and masks) and rng.random() < crowding
            depth_HW = _depth(
                rng,
                CLASSES[label],
                size,
                upon=masks[int(rng.integers(len(masks)))] if crowded else None,
            )
            mask_HW = depth_HW > 0
            area = int(mask_HW.sum())
            rest = [mask & ~mask_HW for mask in masks]
            visible = [*(int(mask.sum()) for mask in rest), area]
            needed = [max(_VISIBLE_PIXELS, visible_share * full) for full in (*full_areas, area)]
            if all(v >= n for v, n in zip(visible, needed, strict=True)):
                break
        else:
            continue
        color = _distinct_color(rng, colors)
        colors.append(color)
        alpha_HW1 = np.clip(depth_HW + 0.5, 0, 1)[..., None]
        image_HWC += alpha_HW1 * (_texture(rng, size, color) - image_HWC)
        masks = [*rest, mask_HW]
        full_areas.append(area)
        labels.append(label)
    image_HWC += rng.standard_normal(image_HWC.shape, dtype=np.float32) * np.float32(
        rng.uniform(1, 6)
    )
    masks_NHW = np.stack(masks) if masks else np.zeros((0, size, size), dtype=bool)
    return np.clip(image_HWC, 0, 255).astype(np.uint8), masks_NHW, labels


def _distinct_color(rng: np.random.Generator, used: list[np.ndarray]) -> np.ndarray:
    """Of several random colours the one farthest from those used: neighbours can be told apart."""
    candidates = rng.uniform(20, 235, (6, 3))
    distances = np.linalg.norm(candidates[:, None] - np.stack(used), axis=-1).min(axis=1)
    return candidates[distances.argmax()]


def _texture(rng: np.random.Generator, size: int, color: np.ndarray) -> np.ndarray:
    """A pattern of moderate contrast around one colour, float32 [H, W, 3]."""
    y, x = _pixel_centers(size) / np.float32(size)
    along, across = _rotate(x, y, rng.uniform(0, 2 * np.pi))
    kind = rng.integers(5)
    if kind == 0:
        pattern_HW = np.zeros((size, size), dtype=np.float32)
    elif kind == 1:
        pattern_HW = along - along.mean()
    elif kind == 2:
        pattern_HW = np.sin(2 * np.pi * rng.uniform(4, 16) * along)
    elif kind == 3:
        cells = rng.uniform(6, 20)
        pattern_HW = np.float32(2) * ((np.floor(cells * along) + np.floor(cells * across)) % 2) - 1
    else:
        coarse = rng.uniform(-1, 1, (int(rng.integers(4, 12)),) * 2).astype(np.float32)
        pattern_HW = ndimage.zoom(
            coarse, size / len(coarse), order=1, mode="nearest", grid_mode=True
        )[:size, :size]
    return color.astype(np.float32) + pattern_HW[..., None] * rng.uniform(-35, 35, 3).astype(
        np.float32
    )


def _depth(rng: np.random.Generator, name: str, size: int, upon: np.ndarray | None) -> np.ndarray:
    """A random instance of a class: [H, W], about the distance to its outline in pixels, positive
    inside. Its centre is in the mask `upon`, if that is given."""
    low = max(_DIAMETER[0], _SMALLEST_DIAMETER / size)
    radius = size * math.exp(rng.uniform(math.log(low), math.log(_DIAMETER[1]))) / 2
    if upon is None:
        center_x, center_y = rng.uniform(0.05 * size, 0.95 * size, 2)
    else:
        center_y, center_x = rng.choice(np.argwhere(upon)) + 0.5
    squeeze = rng.uniform(0.75, 1)
    y, x = _pixel_centers(size)
    x, y = _rotate(
        (x - np.float32(center_x)) / radius,
        (y - np.float32(center_y)) / radius,
        rng.uniform(0, 2 * np.pi),
    )
    return _outline(name, x, y / squeeze) * (-radius * squeeze)


@functools.cache
def _pixel_centers(size: int) -> np.ndarray:
    """Float32 [2, H, W]: y and x of every pixel's centre."""
    return np.mgrid[:size, :size].astype(np.float32) + np.float32(0.5)


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine


def _outline(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Implicit function of a class's shape in the unit circle: negative inside, about a distance
    near the outline."""
    if name == "circle":
        return np.hypot(x, y) - 1
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.75) - 0.25
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)
    if name == "cross":
        long, thin = 0.95, 0.28
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - long, y - thin), np.maximum(x - thin, y - long))
    if name == "frame":
        return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.54) - 0.16
    if name == "semicircle":
        return np.maximum(np.hypot(x, y + 0.42) - 0.9, -0.42 - y)
    if name == "crescent":
        return np.maximum(np.hypot(x, y) - 1, 0.75 - np.hypot(x - 0.5, y))
    if name == "tee":
        x = np.abs(x)
        return np.minimum(
            np.maximum(x - 0.75, np.abs(y + 0.4) - 0.25),
            np.maximum(x - 0.25, np.abs(y - 0.15) - 0.75),
        )
    corners, inner = {
        "triangle": (3, 0.5),
        "star": (5, 0.42),
        "pentagon": (5, 0.809),
        "spark": (4, 0.35),
    }[name]
    # One edge, from a corner (1, 0) to a notch of radius `inner`, mirrored and turned around the
    # centre.
    half = math.pi / corners
    theta = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    radius = np.hypot(x, y)
    normal_x, normal_y = inner * math.sin(half), 1 - inner * math.cos(half)
    length = math.hypot(normal_x, normal_y)
    return (radius * np.cos(theta) - 1) * (normal_x / length) + radius * np.sin(theta) * (
        normal_y / length
    )
