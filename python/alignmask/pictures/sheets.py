"""Pictures of several images: predictions beside ground truth.

Shapes: N instances or predictions, H x W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from alignmask.config import SHOWN_SCORE
from alignmask.evaluation.results_file import (
    ResultsLike,
    group_by_image,
    load_ground_truth,
    load_results,
)
from alignmask.pictures.drawing import Drawable, draw_instances
from alignmask.pictures.fonts import font

if TYPE_CHECKING:
    from alignmask.data import CocoDataset, Sample


@dataclass(frozen=True)
class Predictions:
    """Predictions read from a results file, for drawing."""

    scores_N: np.ndarray
    labels_N: np.ndarray
    masks_NHW: np.ndarray


def truth_sheet(
    rows: Sequence[tuple[np.ndarray, Drawable, Drawable]],
    class_names: Sequence[str],
    out_png: Path,
    *,
    threshold: float = SHOWN_SCORE,
    cell: int = 384,
    pairs_per_row: int = 2,
) -> None:
    """Write one picture that shows several images, each with its ground truth (left) and its
    prediction (right).

    Args:
        rows: (image_HWC uint8 RGB, ground truth, prediction) of each image.
        threshold: Predictions with a lower score are left out.
        cell: Side of the square that each image is fitted into, pixels.
    Raises:
        ValueError: There are no images.
    """
    if not rows:
        raise ValueError("truth_sheet: expected at least one image, got none")
    gap, head = 6, 28
    pairs = min(pairs_per_row, len(rows))
    titles = ("ground truth", f"prediction (score ≥ {threshold:g})")
    lines = [rows[start : start + pairs] for start in range(0, len(rows), pairs)]
    heights = [
        max(round(cell * image.shape[0] / max(image.shape[:2])) for image, _, _ in line)
        for line in lines
    ]
    sheet = Image.new(
        "RGB", (pairs * (2 * cell + 2 * gap) + gap, head + sum(heights) + gap * len(lines)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    y = head
    for line, height in zip(lines, heights, strict=True):
        for pair, (image_HWC, *both) in enumerate(line):
            for side, instances in enumerate(both):
                x = gap + pair * (2 * cell + 2 * gap) + side * (cell + gap // 2)
                if y == head:
                    draw.text(
                        (x + cell / 2, head / 2),
                        titles[side],
                        font=font(15),
                        fill="black",
                        anchor="mm",
                    )
                picture = draw_instances(
                    image_HWC, instances, class_names, threshold=threshold, min_side=cell
                )
                picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(picture, (x + (cell - picture.width) // 2, y))
        y += height + gap
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png)


def samples_sheet(
    dataset: CocoDataset, out_png: Path, *, images: int = 12, seed: int = 0, cell: int = 320
) -> None:
    """Write one picture of randomly chosen images with their ground truth."""
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), min(images, len(dataset))))
    samples = [dataset.load(index) for index in chosen]
    grid_sheet(samples, dataset.class_names, out_png, cell=cell)


def grid_sheet(
    samples: Sequence[Sample], class_names: Sequence[str], out_png: Path, *, cell: int = 320
) -> None:
    """Write one picture of several samples with their instances, four in a row."""
    columns = min(4, len(samples))
    gap, rows = 6, -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), "white")
    for place, sample in enumerate(samples):
        image_HWC = sample.image_CHW.permute(1, 2, 0).numpy()
        picture = draw_instances(image_HWC, sample, class_names, min_side=cell)
        picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        row, column = divmod(place, columns)
        x = gap + column * (cell + gap) + (cell - picture.width) // 2
        sheet.paste(picture, (x, gap + row * (cell + gap) + (cell - picture.height) // 2))
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png)


def results_sheet(
    dataset: CocoDataset,
    results: ResultsLike,
    out_png: Path,
    *,
    images: int = 8,
    threshold: float = SHOWN_SCORE,
    **options: Any,
) -> None:
    """Write a `truth_sheet` of images that are evenly spread over a data set, with predictions from
    a results file.

    Args:
        results: COCO results file of that data set, or its entries.
        images: Number of images to show; those with ground truth are preferred.
        options: Further arguments of `truth_sheet`.
    """
    ground_truth = load_ground_truth(dataset.annotations, dataset.images)
    by_image = group_by_image(load_results(results, ground_truth).entries)
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    samples = [
        dataset.load(int(i))
        for i in np.linspace(0, len(dataset) - 1, min(2 * images, len(dataset)))
    ]
    # Stable: the data set's order within each group.
    samples.sort(key=lambda sample: len(sample.labels_N) == 0)
    rows = []
    for sample in samples[:images]:
        mine = by_image.get(sample.image_id, [])
        masks_NHW = np.zeros((len(mine), *sample.size), bool)
        for n, entry in enumerate(mine):
            masks_NHW[n] = mask_utils.decode(entry["segmentation"])
        prediction = Predictions(
            np.array([entry["score"] for entry in mine], float),
            np.array([label_of[entry["category_id"]] for entry in mine], np.int64),
            masks_NHW,
        )
        rows.append((sample.image_CHW.permute(1, 2, 0).numpy(), sample, prediction))
    truth_sheet(rows, dataset.class_names, out_png, threshold=threshold, **options)
