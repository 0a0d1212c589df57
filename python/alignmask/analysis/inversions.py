"""The worst rank inversions of a model: found, and drawn like Fig. 1 of the paper.

Shapes: N predictions of one image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alignmask.evaluation.alignment import ScoreIoU, top_predictions
from alignmask.pictures.drawing import OVERLAP, PREDICTION, TRUTH, draw_overlap
from alignmask.pictures.fonts import DEJAVU, font

LEAST_IOU = 0.1
"""Predictions with a smaller IoU are left out: they may show objects that were not annotated."""
AS_GOOD = 0.05
"""Masks of one object count as equally good if their IoUs differ by no more."""


@dataclass(frozen=True)
class Inversion:
    """Two predictions of an image of which the one with the poorer mask has the higher score."""

    image_id: int
    high: int
    """Position (in the results file) of the prediction with the high score and the poor mask."""
    low: int
    """Of the one with the low score and the good mask."""
    severity: float
    """Difference of the scores x difference of the IoUs."""


def worst_inversions(pairs: ScoreIoU, count: int) -> list[Inversion]:
    """The worst inversion of each image, the worst image first; at most `count`.

    IoU is with the best ground truth of any class. A low score over a good mask is not a fault if
    another prediction of the same object has a higher score and a mask that is about as good
    (AS_GOOD): the low score is what keeps the duplicate out.
    """
    confident = top_predictions(pairs, 1.0)
    usable = confident[pairs.iou_any_class_N[confident] >= LEAST_IOU]
    by_image = usable[np.argsort(pairs.image_ids_N[usable], kind="stable")]
    found = []
    for index_N in np.split(by_image, np.flatnonzero(np.diff(pairs.image_ids_N[by_image])) + 1):
        score_N, iou_N, truth_N = (
            a[index_N] for a in (pairs.scores_N, pairs.iou_any_class_N, pairs.truth_any_class_N)
        )
        rivals_NN = (
            (truth_N == truth_N[:, None])
            & (iou_N >= iou_N[:, None] - AS_GOOD)
            & (score_N > score_N[:, None])
        )
        score_gap_NN = score_N[:, None] - score_N  # [high, low]
        iou_gap_NN = iou_N - iou_N[:, None]
        inverted_NN = (score_gap_NN > 0) & (iou_gap_NN > 0) & ~rivals_NN.any(axis=1)
        severity_NN = np.where(inverted_NN, score_gap_NN * iou_gap_NN, 0.0)
        if severity_NN.size and severity_NN.max() > 0:
            high, low = np.unravel_index(severity_NN.argmax(), severity_NN.shape)
            image_id = int(pairs.image_ids_N[index_N[0]])
            found.append(
                Inversion(
                    image_id, int(index_N[high]), int(index_N[low]), float(severity_NN[high, low])
                )
            )
    return sorted(found, key=lambda inversion: -inversion.severity)[:count]


@dataclass(frozen=True)
class Panel:
    """A prediction over its image."""

    image_HWC: np.ndarray
    truth_HW: np.ndarray
    prediction_HW: np.ndarray
    caption: str
    caption_font: Path = DEJAVU


def inversion_sheet(
    inversions: Sequence[tuple[Panel, Panel]],
    *,
    title: str = "",
    title_font: Path = DEJAVU,
    cell: int = 300,
    pairs_per_row: int = 2,
) -> Image.Image:
    """One picture of inversions, each as two panels: high score and poor mask (left), low score and
    good mask (right).

    Args:
        inversions: (high, low) of each. If there are none, the picture says so.
        title_font: A font file that has the glyphs of the title.
        cell: Side of the square that each image is fitted into, pixels.
    """
    gap, text, head = 8, 20, 66
    pairs = max(1, min(pairs_per_row, len(inversions)))
    lines = [inversions[start : start + pairs] for start in range(0, len(inversions), pairs)]
    drawn = [
        [[_fitted(panel, _window(both), cell) for panel in both] for both in line] for line in lines
    ]
    heights = [max(picture.height for both in line for picture in both) for line in drawn]
    size = (
        pairs * (2 * cell + 3 * gap) + gap,
        head + sum(heights) + (text + gap) * max(1, len(lines)),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    letters = font(16, title_font)
    draw.text((gap, 5), _shortened(title, size[0] - 2 * gap, letters), font=letters, fill="black")
    _legend(draw, gap, 31)
    if not inversions:
        draw.text((gap, head), "no rank inversion found", font=font(13), fill="black")
    y = head
    for line, pictures, height in zip(lines, drawn, heights, strict=True):
        for pair, (panels, both) in enumerate(zip(line, pictures, strict=True)):
            for side, (panel, picture) in enumerate(zip(panels, both, strict=True)):
                x = gap + pair * (2 * cell + 3 * gap) + side * (cell + gap)
                letters = font(13, panel.caption_font)
                caption = _shortened(panel.caption, cell, letters)
                draw.text((x, y), caption, font=letters, fill="black")
                sheet.paste(picture, (x, y + text))
        y += height + text + gap
    return sheet


def _window(panels: Sequence[Panel]) -> tuple[slice, slice]:
    """The part of the image with all the masks, a margin around them, and at least a third of each
    side."""
    masks_HW = np.logical_or.reduce(
        [mask_HW for panel in panels for mask_HW in (panel.truth_HW, panel.prediction_HW)]
    )
    return _span(masks_HW.any(axis=1)), _span(masks_HW.any(axis=0))


def _span(any_L: np.ndarray) -> slice:
    length, inside = len(any_L), np.flatnonzero(any_L)
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, length - 1)
    half = max(0.6 * (last + 1 - first), length / 6)
    middle = (
        min(max((first + last + 1) / 2, half), length - half) if 2 * half < length else length / 2
    )
    return slice(max(0, int(middle - half)), min(length, int(np.ceil(middle + half))))


def _fitted(panel: Panel, window: tuple[slice, slice], cell: int) -> Image.Image:
    picture = draw_overlap(
        panel.image_HWC[window], panel.truth_HW[window], panel.prediction_HW[window]
    )
    scale = cell / max(picture.size)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    return picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _legend(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for fill, words in ((TRUTH, "ground truth"), (PREDICTION, "prediction"), (OVERLAP, "overlap")):
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=fill)
        draw.text((x + 17, y), words, font=font(13), fill="black")
        x += 17 + draw.textlength(words, font=font(13)) + 16
    draw.text(
        (x, y),
        "left: higher score, poorer mask; right: lower score, better mask",
        font=font(13),
        fill="black",
    )


def _shortened(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """The text, shortened to at most this width, in pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
