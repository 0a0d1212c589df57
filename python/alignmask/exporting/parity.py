"""Whether an exported file finds what its model finds.

N detections of an image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignmask._printing import counted
from alignmask.config import SHOWN_SCORE
from alignmask.exporting.segmenter import DIVISOR, SMALLEST, Detections

Run = Callable[[Tensor, Tensor], Detections]
Inputs = tuple[Tensor, Tensor]
"""image and size, as `Segmenter.forward` takes them."""

ENOUGH = 0.95
"""Share of the model's detections that the file must reproduce. It is below 1 because attention
masks are cut at 0, so that the last bit of a logit can decide what a query sees."""


class Tolerance(NamedTuple):
    """How far the same detection may differ."""

    score: float
    iou: float


FULL, HALF = Tolerance(1e-4, 0.99), Tolerance(0.05, 0.9)
"""Of files that compute in float32, and in float16."""


@dataclass(frozen=True)
class Parity:
    """How an exported file and its model compare, on the detections that the model shows: those
    with a score of 0.5 or more."""

    images: int
    photos: bool
    """Whether the images were given; otherwise they were generated."""
    detections: int
    """How many the model shows in the images. If there are none, nothing is known of parity."""
    same: float
    """The share of them that the file finds, too."""
    mean_iou: float
    lowest_iou: float
    """IoU of the masks of model and file."""
    score: float
    """The largest difference of two scores."""

    @property
    def shown(self) -> bool:
        """Whether the comparison says anything."""
        return self.detections > 0

    def __str__(self) -> str:
        images = counted(self.images, "photo" if self.photos else "generated image")
        if not self.shown:
            return (
                f"parity is not shown: the model finds nothing with a score of {SHOWN_SCORE:g} or "
                f"more in {images}"
            )
        return (
            f"{self.same:.1%} of {counted(self.detections, 'detection')} in {images} are the "
            f"model's: IoU of the masks {self.mean_iou:.4f} on average, {self.lowest_iou:.4f} at "
            f"worst, scores differ by {self.score:.1g} at most"
        )


def compare(
    expected: Run, found: Run, inputs: Iterable[Inputs], tolerance: Tolerance, *, photos: bool
) -> Parity:
    """Compare the model's detections with those of the file that was written of it.

    Raises RuntimeError if the file's scores are not finite, or if it lacks too many of the model's
    detections or has too many others.
    """
    ious: list[float] = []
    differences: list[float] = []
    images = extra = 0
    for image, size in inputs:
        theirs, ours = _run(expected, found, image, size)
        images += len(image)
        iou, difference = partners(theirs, ours)
        ious += iou
        differences += difference
        extra += sum(overlap < tolerance.iou for overlap in partners(ours, theirs)[0])
    missed = sum(
        iou < tolerance.iou or difference > tolerance.score
        for iou, difference in zip(ious, differences, strict=True)
    )
    shown = len(ious)
    wrong = max(missed, extra) / shown if shown else float(extra > 0)
    if wrong > 1 - ENOUGH:
        raise RuntimeError(
            f"export: the written file gives {max(0, 1 - wrong):.0%} of the model's {shown} "
            f"detections, expected {ENOUGH:.0%} or more"
        )
    return Parity(
        images=images,
        photos=photos,
        detections=shown,
        same=1 - missed / shown if shown else 0.0,
        mean_iou=sum(ious) / shown if shown else 0.0,
        lowest_iou=min(ious, default=0.0),
        score=max(differences, default=0.0),
    )


def partners(detections: Detections, others: Detections) -> tuple[list[float], list[float]]:
    """For each of the detections that are shown, its counterpart among the others of the same
    label: their masks' IoU, and the difference of their scores.

    The counterpart is the one whose IoU is the largest; of several, the one whose score is nearest.
    """
    ious, differences = [], []
    for scores, labels, masks, other_scores, other_labels, other_masks in _images(
        detections, others
    ):
        rows, columns = scores >= SHOWN_SCORE, other_scores > 0
        overlap = _overlap(masks[rows], other_masks[columns])
        overlap = overlap.masked_fill(labels[rows][:, None] != other_labels[columns], 0)
        apart = (scores[rows][:, None] - other_scores[columns]).abs()
        for overlaps, distances in zip(overlap, apart, strict=True):
            best = float(overlaps.max()) if len(overlaps) else 0.0
            ious.append(best)
            differences.append(float(distances[overlaps == best].min()) if best else 1.0)
    return ious, differences


def agreement(
    found: Detections, expected: Detections, score: float = FULL.score, iou: float = FULL.iou
) -> float:
    """The share of the detections in `found` that are also in `expected`: with the same label, a
    score that differs by at most `score`, and a mask with an IoU of at least `iou`. Detections of
    score 0 do not count; 1.0 if there are no others."""
    same = seen = 0
    for scores, labels, masks, other_scores, other_labels, other_masks in _images(found, expected):
        rows, columns = scores > 0, other_scores > 0
        alike = _overlap(masks[rows], other_masks[columns]) >= iou
        alike &= labels[rows][:, None] == other_labels[columns]
        alike &= (scores[rows][:, None] - other_scores[columns]).abs() <= score
        same, seen = same + int(alike.any(dim=1).sum()), seen + int(rows.sum())
    return same / seen if seen else 1.0


def check_all(expected: Run, found: Run, inputs: Sequence[Inputs]) -> None:
    """Raises RuntimeError unless a float32 file agrees with the model in everything: also in
    detections that are never shown, which even a model with random weights has."""
    for image, size in inputs:
        theirs, ours = _run(expected, found, image, size)
        share = min(agreement(ours, theirs), agreement(theirs, ours))
        if share < ENOUGH:
            raise RuntimeError(
                f"export: the written file gives {share:.0%} of the model's detections, expected "
                f"{ENOUGH:.0%} or more"
            )


def _run(expected: Run, found: Run, image: Tensor, size: Tensor) -> tuple[Detections, Detections]:
    """What the model and the file find. Raises RuntimeError if the file's scores are not finite."""
    with torch.no_grad():
        theirs, ours = expected(image, size), found(image, size)
    if not ours[0].isfinite().all():
        raise RuntimeError("export: the written file gives scores that are not finite")
    return theirs, ours


def generated(device: torch.device) -> list[Inputs]:
    """Two batches whose number and size of images differ from those of the traced batch."""
    return [
        smooth_images(count, size, device) for count, size in ((1, (SMALLEST, 160)), (3, (160, 96)))
    ]


def smooth_images(count: int, size: tuple[int, int], device: torch.device) -> Inputs:
    """Generated images of smooth colours, and sizes that leave some padding."""
    generator = torch.Generator().manual_seed(0)
    step = DIVISOR // 2
    coarse = torch.rand(count, 3, size[0] // step, size[1] // step, generator=generator)
    image = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255
    sizes = torch.tensor([(size[0] - 5 * (i % 2), size[1] - 3 * i) for i in range(count)])
    return image.to(torch.uint8).to(device), sizes.to(device)


def _images(first: Detections, second: Detections) -> Iterable[tuple[Tensor, ...]]:
    """scores, labels and masks of each image, of both, on the host."""
    return zip(*(output.cpu() for output in (*first, *second)), strict=True)


def _overlap(masks_NHW: Tensor, other_MHW: Tensor) -> Tensor:
    """-> [N, M]: the IoU of each two masks; 0 for two empty ones."""
    flat, other = masks_NHW.flatten(1).float(), other_MHW.flatten(1).float()
    both = flat @ other.T
    return both / (flat.sum(1)[:, None] + other.sum(1) - both).clamp(min=1)
