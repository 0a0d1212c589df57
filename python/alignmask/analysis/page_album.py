"""The pictures, masks and points of a page, bounded in size.

Shapes: N predictions of one model that are plotted, best first; H x W pixels.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from alignmask.analysis.measure import ModelAnalysis
from alignmask.evaluation.alignment import NO_TRUTH
from alignmask.evaluation.results_file import GroundTruth

if TYPE_CHECKING:
    from alignmask.data import CocoDataset

PICTURE_BYTES = 64 << 20
MASK_BYTES = 32 << 20
SIDES = (640, 480, 360, 280, 220, 160)
"""Longer side of the pictures, pixels: the largest one with which they are likely to fit
PICTURE_BYTES."""


class Album:
    """The images with predictions that are plotted, each with its picture, its masks and its ground
    truth.

    Images are numbered in the order of their most confident prediction.
    """

    def __init__(self, ground_truth: GroundTruth, dataset: CocoDataset | None) -> None:
        self.ground_truth, self.dataset = ground_truth, dataset
        self.image_ids: list[int] = []
        self._number: dict[int, int] = {}
        self._masks: list[dict[bytes, int]] = []
        """Of each image: number of each mask, by its counts. The same mask is often there under
        several classes."""
        self._place = (
            {} if dataset is None else {image_id: n for n, image_id in enumerate(dataset.image_ids)}
        )

    def columns(self, model: ModelAnalysis, top_N: np.ndarray) -> dict[str, np.ndarray]:
        """The predictions at these positions of the results, for plotting."""
        pairs = model.pairs
        label_of = {category: label for label, category in enumerate(self.ground_truth.categories)}
        picture_N, mask_N, area_N, same_N, any_N = np.zeros((5, len(top_N)), np.int32)
        for n, position in enumerate(top_N):
            entry = model.results.entries[position]
            image_id, segmentation = entry["image_id"], entry["segmentation"]
            if image_id not in self._number:
                self._number[image_id] = len(self.image_ids)
                self.image_ids.append(image_id)
                self._masks.append({})
            picture_N[n] = self._number[image_id]
            masks = self._masks[picture_N[n]]
            mask_N[n] = masks.setdefault(segmentation["counts"], len(masks))
            area_N[n] = mask_utils.area(segmentation)
            same_N[n] = self._truth_number(int(pairs.truth_same_class_N[position]))
            any_N[n] = self._truth_number(int(pairs.truth_any_class_N[position]))
        score_N, iou_N = (
            pairs.scores_N[top_N].astype(np.float32),
            pairs.iou_same_class_N[top_N].astype(np.float32),
        )
        return {
            "score": score_N,
            "iou": iou_N,
            "gap": score_N - iou_N,
            "same": iou_N,
            "any": pairs.iou_any_class_N[top_N].astype(np.float32),
            "label": np.array(
                [label_of[category] for category in pairs.category_ids_N[top_N]], np.int32
            ),
            "area": area_N,
            "picture": picture_N,
            "mask": mask_N,
            "truth_same": same_N,
            "truth_any": any_N,
        }

    @functools.cached_property
    def _truth_numbers(self) -> dict[int, int]:
        """Of each annotation by id: its place among the instances of its image."""
        return {
            annotation["id"]: number
            for image_id in self.ground_truth.by_image
            for number, annotation in enumerate(self._truths(image_id))
        }

    def _truth_number(self, annotation_id: int) -> int:
        return -1 if annotation_id == NO_TRUTH else self._truth_numbers[annotation_id]

    def _truths(self, image_id: int) -> list[dict[str, Any]]:
        return [a for a in self.ground_truth.by_image.get(image_id, []) if not a["iscrowd"]]

    def pictures(
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The record of each image, one after the other."""
        side, step = self._picture_side(), self._mask_step()
        label_of = {category: label for label, category in enumerate(self.ground_truth.categories)}
        left = PICTURE_BYTES
        for number, image_id in enumerate(self.image_ids):
            if progress is not None:
                progress(number, len(self.image_ids))
            size = self.ground_truth.sizes[image_id]
            shrunk = max(step, math.ceil(max(size) / max(SIDES)))
            picture = self._picture(image_id, side) if left > 0 else ""
            left -= len(picture)
            yield {
                "name": ""
                if self.dataset is None
                else self.dataset.file_name(self._place[image_id]),
                "id": image_id,
                "jpeg": picture if left > 0 else "",
                "size": [math.ceil(length / shrunk) for length in size],
                "truths": [
                    {
                        "label": label_of[a["category_id"]],
                        "counts": _shrunk(a["segmentation"]["counts"], size, shrunk),
                    }
                    for a in self._truths(image_id)
                ],
                "masks": [_shrunk(counts, size, shrunk) for counts in self._masks[number]],
            }
        if progress is not None:
            progress(len(self.image_ids), len(self.image_ids))

    def _picture(self, image_id: int, side: int) -> str:
        """JPEG as base64."""
        if self.dataset is None:
            return ""
        picture = Image.fromarray(
            self.dataset.load(self._place[image_id]).image_CHW.permute(1, 2, 0).numpy()
        )
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return jpeg(picture, 70)

    def _picture_side(self) -> int:
        if self.dataset is None or not self.image_ids:
            return SIDES[0]
        samples = [
            self.image_ids[n]
            for n in np.unique(np.linspace(0, len(self.image_ids) - 1, 12).astype(int))
        ]
        for side in SIDES:
            bytes_each = sum(len(self._picture(image_id, side)) for image_id in samples) / len(
                samples
            )
            if 1.1 * bytes_each * len(self.image_ids) <= PICTURE_BYTES:
                return side
        return SIDES[-1]

    def _mask_step(self) -> int:
        """The step n for which every n-th row and column of the masks is kept; their encodings
        shrink in proportion."""
        masks = sum(len(counts) for counts_of_image in self._masks for counts in counts_of_image)
        truths = sum(
            len(a["segmentation"]["counts"])
            for image_id in self.image_ids
            for a in self._truths(image_id)
        )
        return max(1, math.ceil((masks + truths) / MASK_BYTES))


def _shrunk(counts: bytes, size: tuple[int, int], step: int) -> str:
    """A mask's run-length encoding with every step-th row and column."""
    if step == 1:
        return counts.decode("ascii")
    mask_HW = mask_utils.decode({"size": list(size), "counts": counts})
    return mask_utils.encode(np.asfortranarray(mask_HW[::step, ::step]))["counts"].decode("ascii")


def jpeg(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
