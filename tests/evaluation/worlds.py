"""Small COCO-format data sets and stand-in models for the tests of evaluation, analysis and command
line.

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
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from alignmask.data import CocoDataset
from alignmask.model.sparse import SparseInstances


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

    def annotate(
        self, image: int, category: int, mask_HW: np.ndarray, crowd: bool = False, **more: Any
    ) -> None:
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
        self.results.append(
            {
                "image_id": image,
                "category_id": category,
                "segmentation": rle(mask_HW),
                "score": score,
            }
        )

    def coco(self) -> dict[str, Any]:
        return {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
                for i, (h, w) in self.sizes.items()
            ],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
            "annotations": self.annotations,
        }

    def write(self, folder: Path, images: bool = False) -> Path:
        """Writes the annotation file, and grey images if wanted, into `folder`; returns the
        annotation file's path."""
        if images:
            for image, (h, w) in self.sizes.items():
                pixels = np.random.default_rng(image).integers(60, 200, (h, w, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
        path = folder / "annotations.json"
        path.write_text(json.dumps(self.coco()))
        return path


def small_world(seed: int = 0, images: int = 5) -> World:
    """Images of different sizes with 0 to 3 boxes of two categories, perturbed and spurious
    predictions with ties."""
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


BOUNDARIES = (1, 1023, 1024, 1025, 9215, 9216, 9217, 20_000)
"""Areas at and around the limits of small, medium and large: a limit itself belongs to both
sides."""


def random_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A box or an ellipse, from a pixel to the whole image."""
    height, width = size
    bottom, right = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    top, left = int(rng.integers(0, bottom)), int(rng.integers(0, right))
    mask_HW = box_mask(size, top, left, bottom, right)
    if rng.random() < 0.5:
        y, x = np.ogrid[:height, :width]
        mask_HW &= ((2 * y + 1 - top - bottom) / (bottom - top)) ** 2 + (
            (2 * x + 1 - left - right) / (right - left)
        ) ** 2 < 1.5
    return mask_HW


def perturbed(rng: np.random.Generator, mask_HW: np.ndarray) -> np.ndarray:
    """The mask as it is, moved by some pixels, or with a part cut off; never empty."""
    kind = rng.integers(3)
    if kind == 0:
        return mask_HW
    moved = np.roll(mask_HW, rng.integers(-3, 4, 2), axis=(0, 1)) if kind == 1 else mask_HW.copy()
    if kind == 2:
        moved[int(rng.integers(1, mask_HW.shape[0] + 1)) :] = False
    return moved if moved.any() else mask_HW


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Ids with gaps and in any order, crowds, images and categories without annotations or
    predictions, score ties."""
    ids = draw(st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True))
    sizes = {i: draw(st.sampled_from([(1, 1), (17, 40), (40, 33), (150, 140)])) for i in ids}
    category_ids = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3, unique=True))
    levels = draw(st.sampled_from([1, 2, 5, 1000]), label="different scores")
    crowd_share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    own_areas = draw(st.booleans(), label="areas of the file differ from the masks'")
    most = draw(st.sampled_from([0, 2, 6, 120]), label="most spurious predictions of an image")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    world = World(sizes, {i: f"class {i}" for i in category_ids})

    def score() -> float:
        return float(rng.integers(0, levels + 1) / levels)

    for image, size in sizes.items():
        for _ in range(draw(st.integers(0, 4))):
            category, mask_HW = int(rng.choice(category_ids)), random_mask(rng, size)
            area = {"area": int(rng.choice(BOUNDARIES))} if own_areas else {}
            world.annotate(image, category, mask_HW, crowd=bool(rng.random() < crowd_share), **area)
            for _ in range(rng.integers(0, 3)):
                world.predict(image, category, perturbed(rng, mask_HW), score())
        for _ in range(int(rng.integers(0, most + 1))):
            world.predict(image, int(rng.choice(category_ids)), random_mask(rng, size), score())
    return world


POWERS = {"class": (1, 0), "class*mask": (1, 1), "class^0.5*mask": (0.5, 1)}
"""Of class and mask score, by score mode."""


class TableModel(torch.nn.Module):
    """Predicts what a World's results say, whatever the image shows; mask scores are drawn from the
    image id."""

    def __init__(self, world: World, score: str = "class") -> None:
        super().__init__()
        self.config = SimpleNamespace(score=score)
        self.world = world
        self.batches: list[list[int]] = []

    def predict_encoded(self, batch) -> list[SparseInstances]:
        assert not self.training
        self.batches.append(batch.image_ids)
        return [self.instances(image) for image in batch.image_ids]

    def instances(self, image: int) -> SparseInstances:
        labels = {category: label for label, category in enumerate(sorted(self.world.categories))}
        mine = sorted(
            (r for r in self.world.results if r["image_id"] == image), key=lambda r: -r["score"]
        )
        size = self.world.sizes[image]
        class_scores_N = torch.tensor([result["score"] for result in mine], dtype=torch.float32)
        mask_scores_N = torch.rand(len(mine), generator=torch.Generator().manual_seed(image))
        power, mask_power = POWERS[self.config.score]
        return SparseInstances(
            scores_N=class_scores_N**power * mask_scores_N**mask_power,
            labels_N=torch.tensor(
                [labels[result["category_id"]] for result in mine], dtype=torch.int64
            ),
            rles=[result["segmentation"] for result in mine],
            boxes_N4=torch.zeros(len(mine), 4),
            class_scores_N=class_scores_N,
            mask_scores_N=mask_scores_N,
            size=size,
        )


def dataset_of(world: World, folder: Path, **more: Any) -> CocoDataset:
    return CocoDataset(folder, world.write(folder, images=True), **more)


def write(world: World, folder: Path) -> tuple[Path, Path]:
    """Annotation file and results file."""
    results = folder / "results.json"
    results.write_text(json.dumps(world.results))
    return world.write(folder), results
