"""Small COCO-format data sets and stand-in models for the tests of evaluation, analysis and command line.

Shapes: N masks of one image, H x W pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from alignmask.data import CocoDataset
from alignmask.model import Instances


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """A mask as compressed RLE with `str` counts, the form of results files."""
    encoded = mask_utils.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(side) for side in mask_HW.shape], "counts": encoded["counts"].decode()}


def box_mask(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask_HW = np.zeros(size, bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


@dataclass
class World:
    """A data set in the making: images, categories, annotations, results."""

    sizes: dict[int, tuple[int, int]]
    categories: dict[int, str]
    annotations: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def annotate(self, image: int, category: int, mask_HW: np.ndarray, crowd: bool = False, **more: Any) -> None:
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image,
                "category_id": category,
                "segmentation": rle(mask_HW),
                "area": int(mask_HW.sum()),
                "bbox": [0, 0, 1, 1],
                "iscrowd": int(crowd),
                **more,
            }
        )

    def predict(self, image: int, category: int, mask_HW: np.ndarray, score: float) -> None:
        self.results.append({"image_id": image, "category_id": category, "segmentation": rle(mask_HW), "score": score})

    def coco(self) -> dict[str, Any]:
        return {
            "images": [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in self.sizes.items()],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
            "annotations": self.annotations,
        }

    def write(self, folder: Path, images: bool = False) -> Path:
        """Writes the annotation file, and grey images if wanted, into `folder`; returns the annotation file's path."""
        if images:
            for image, (h, w) in self.sizes.items():
                pixels = np.random.default_rng(image).integers(60, 200, (h, w, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
        path = folder / "annotations.json"
        path.write_text(json.dumps(self.coco()))
        return path


def small_world(seed: int = 0, images: int = 5) -> World:
    """Images of different sizes with 0 to 3 boxes of two categories, perturbed and spurious predictions with ties."""
    rng = np.random.default_rng(seed)
    world = World({10 * i + 7: (40 + i, 60 - i) for i in range(images)}, {3: "cat", 11: "dog"})
    for image, (h, w) in world.sizes.items():
        for _ in range(rng.integers(0, 4)):
            top, left = int(rng.integers(0, h - 12)), int(rng.integers(0, w - 12))
            size = int(rng.integers(5, 12))
            category = int(rng.choice([3, 11]))
            world.annotate(image, category, box_mask((h, w), top, left, top + size, left + size))
            shift = int(rng.integers(0, 3))
            moved = box_mask((h, w), top + shift, left, top + size + shift, left + size)
            world.predict(image, category, moved, round(float(rng.random()), 1))
        world.predict(image, 3, box_mask((h, w), 0, 0, 6, 6), round(float(rng.random()), 1))
    return world


class TableModel(torch.nn.Module):
    """Predicts what a World's results say, whatever the image shows; mask scores are drawn from the image id."""

    def __init__(self, world: World, score: str = "class") -> None:
        super().__init__()
        self.config = SimpleNamespace(score=score)
        self.world = world
        self.batches: list[list[int]] = []

    def predict(self, batch) -> list[Instances]:
        assert not self.training
        self.batches.append(batch.image_ids)
        return [self.instances(image) for image in batch.image_ids]

    def instances(self, image: int) -> Instances:
        labels = {category: label for label, category in enumerate(sorted(self.world.categories))}
        mine = sorted((r for r in self.world.results if r["image_id"] == image), key=lambda r: -r["score"])
        size = self.world.sizes[image]
        masks_NHW = torch.zeros(len(mine), *size, dtype=torch.bool)
        for n, result in enumerate(mine):
            masks_NHW[n] = torch.from_numpy(mask_utils.decode(result["segmentation"]).astype(bool))
        class_scores_N = torch.tensor([result["score"] for result in mine], dtype=torch.float32)
        mask_scores_N = torch.rand(len(mine), generator=torch.Generator().manual_seed(image))
        return Instances(
            scores_N=class_scores_N if self.config.score == "class" else class_scores_N * mask_scores_N,
            labels_N=torch.tensor([labels[result["category_id"]] for result in mine], dtype=torch.int64),
            masks_NHW=masks_NHW,
            boxes_N4=torch.zeros(len(mine), 4),
            class_scores_N=class_scores_N,
            mask_scores_N=mask_scores_N,
        )


def dataset_of(world: World, folder: Path, **more: Any) -> CocoDataset:
    return CocoDataset(folder, world.write(folder, images=True), **more)
