"""Instances drawn over their image.

Shapes: N instances, H x W pixels of the image.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from alignmask.config import Colours
from alignmask.pictures.fonts import SCORE, Lettering, lettering

TRUSTED = "✓"
"""Stands before the names of instances that a guarantee covers."""
TRUTH, PREDICTION, OVERLAP = (235, 35, 35), (20, 200, 60), (255, 225, 0)
"""The paper's colours (Fig. 1): red, green, yellow."""


class Drawable(Protocol):
    """What can be drawn: predictions (`alignmask.Instances`), which have `scores_N` and may have
    `trusted_N`, and samples, which do not."""

    @property
    def masks_NHW(self) -> Any: ...

    @property
    def labels_N(self) -> Any: ...


def draw_instances(
    image_HWC: np.ndarray,
    instances: Drawable,
    class_names: Sequence[str],
    *,
    threshold: float = 0.0,
    min_side: int = 512,
    labels: bool = True,
    opacity: float = 0.45,
    colours: Colours = "instance",
) -> Image.Image:
    """Draw masks, contours, class names and scores over an image.

    Where it is known which instances are trusted, those have a check mark before their names, and
    the contours of all others are dashed.

    Args:
        image_HWC: uint8 RGB, at the size of the masks. The arrays of `instances` may be torch
            tensors or numpy arrays.
        threshold: Predictions with a lower score are left out.
        min_side: An image whose longer side has fewer pixels is enlarged by a whole factor, so that
            text and contours are readable.
        labels: Write scores, and class names if there are several classes. The most confident
            instances come first; a text that would cover another one is left out.
        opacity: Opacity of the masks, 0 to 1.
        colours: "instance": each instance has a colour of its own, in the order of the scores.
            "class": each class has, the same in all pictures.
    Raises:
        ValueError: Image and masks differ in size, or a label has no class name.
    """
    image_HWC = np.asarray(image_HWC)
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise ValueError(
            f"draw_instances: expected a uint8 image [H, W, 3], got {image_HWC.dtype} "
            f"{image_HWC.shape}"
        )
    masks_NHW, labels_N = np.asarray(instances.masks_NHW, bool), np.asarray(instances.labels_N)
    scores_N = np.asarray(instances.scores_N, float) if hasattr(instances, "scores_N") else None
    if masks_NHW.shape != (len(labels_N), *image_HWC.shape[:2]):
        raise ValueError(
            f"draw_instances: expected masks [{len(labels_N)}, {image_HWC.shape[0]}, "
            f"{image_HWC.shape[1]}], "
            f"got {list(masks_NHW.shape)}"
        )
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < len(class_names):
        raise ValueError(
            f"draw_instances: labels must be 0 .. {len(class_names) - 1}, got "
            f"{sorted(set(labels_N))}"
        )
    order = np.arange(len(labels_N))
    if scores_N is not None:
        order = np.argsort(-scores_N, kind="stable")
        order = order[scores_N[order] >= threshold]
        masks_NHW, labels_N, scores_N = masks_NHW[order], labels_N[order], scores_N[order]
    known = getattr(instances, "trusted_N", None)
    trusted_N = np.ones(len(masks_NHW), bool) if known is None else np.asarray(known)[order]

    height, width = image_HWC.shape[:2]
    factor = max(1, -(-min_side // max(height, width)))
    picture = Image.fromarray(image_HWC).resize(
        (factor * width, factor * height), Image.Resampling.BICUBIC
    )
    original_HWC = np.asarray(picture).astype(np.float32)
    canvas_HWC = original_HWC.copy()
    numbers = labels_N.tolist() if colours == "class" else range(len(labels_N))
    paints = [colour(number) for number in numbers]
    thickness = max(1, round(max(canvas_HWC.shape[:2]) / 400))
    windows = [_window(mask_HW) for mask_HW in masks_NHW]
    for n in _bottom_to_top(masks_NHW):
        if (window := windows[n]) is not None:
            _paint(
                canvas_HWC,
                original_HWC,
                masks_NHW[n],
                window,
                factor,
                np.array(paints[n]),
                opacity,
                thickness,
                dashed=not trusted_N[n],
            )
    picture = Image.fromarray(canvas_HWC.round().astype(np.uint8))
    if labels:
        mark = "" if known is None else TRUSTED
        classes = (
            lettering(class_names, beside=SCORE + mark) if len(class_names) > 1 else [Lettering("")]
        )
        names = [classes[label] for label in labels_N]
        scores = (
            [f"{score:.2f}" for score in scores_N] if scores_N is not None else [""] * len(names)
        )
        texts = [
            replace(name, text=f"{mark if trusted else ''} {name.text} {score}".strip())
            for name, score, trusted in zip(names, scores, trusted_N, strict=True)
        ]
        _write_labels(
            picture,
            texts,
            paints,
            [_highest_pixel(*pair) for pair in zip(masks_NHW, windows, strict=True)],
            factor,
        )
    return picture


def draw_overlap(
    image_HWC: np.ndarray, truth_HW: np.ndarray, prediction_HW: np.ndarray, opacity: float = 0.55
) -> Image.Image:
    """One prediction and its ground truth over their image, in the paper's colours (Fig. 1); all of
    the same size.

    The image is turned grey: its own colours could be taken for these.
    """
    if not image_HWC.shape[:2] == truth_HW.shape == prediction_HW.shape:
        raise ValueError(
            f"draw_overlap: image {list(image_HWC.shape)}, ground truth {list(truth_HW.shape)} and "
            "prediction "
            f"{list(prediction_HW.shape)} differ in size"
        )
    canvas_HWC = np.asarray(Image.fromarray(image_HWC).convert("L").convert("RGB")).astype(
        np.float32
    )
    parts = (
        (truth_HW & ~prediction_HW, TRUTH),
        (prediction_HW & ~truth_HW, PREDICTION),
        (truth_HW & prediction_HW, OVERLAP),
    )
    for part_HW, fill in parts:
        canvas_HWC[part_HW] = (1 - opacity) * canvas_HWC[part_HW] + opacity * np.array(fill)
    return Image.fromarray(canvas_HWC.round().astype(np.uint8))


def colour(n: int) -> tuple[int, int, int]:
    """A bright RGB colour for instance or class n; neighbours in n are far apart in hue (steps of
    the golden ratio)."""
    hue = (0.6 + n * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[n // 2 % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _window(mask_HW: np.ndarray) -> tuple[slice, slice] | None:
    """The box around a mask; None if it is empty."""
    found = ndimage.find_objects(mask_HW.view(np.uint8))
    return found[0] if found else None


def _bottom_to_top(masks_NHW: np.ndarray) -> list[int]:
    """An order in which small instances lie on large ones; of two of about the same size (within a
    factor of 2), the first one is on top."""
    magnitude_N = [int(math.log2(max(1, mask_HW.sum()))) for mask_HW in masks_NHW]
    return sorted(range(len(masks_NHW)), key=lambda n: (-magnitude_N[n], -n))


def _highest_pixel(
    mask_HW: np.ndarray, window: tuple[slice, slice] | None
) -> tuple[int, int] | None:
    """x, y of the leftmost of a mask's highest pixels; None if it is empty."""
    if window is None:
        return None
    rows, columns = window
    return columns.start + int(mask_HW[rows.start, columns].argmax()), rows.start


def _paint(
    canvas_HWC: np.ndarray,
    original_HWC: np.ndarray,
    mask_HW: np.ndarray,
    window: tuple[slice, slice],
    factor: int,
    colour_C: np.ndarray,
    opacity: float,
    thickness: int,
    dashed: bool,
) -> None:
    """Fills and outlines one mask in the enlarged image, in place. It covers what was painted there
    before, because a mixture of two colours would not be that of any instance."""
    inside = np.pad(mask_HW[window].repeat(factor, 0).repeat(factor, 1), thickness)
    core = ndimage.binary_erosion(inside, iterations=thickness)
    inside, core = (array[thickness:-thickness, thickness:-thickness] for array in (inside, core))
    enlarged = tuple(slice(side.start * factor, side.stop * factor) for side in window)
    part_HWC = canvas_HWC[enlarged]
    if dashed:  # a chequered outline: in most directions a line crosses fields of both kinds
        y_H1, x_1W = np.ogrid[: inside.shape[0], : inside.shape[1]]
        core |= inside & ((x_1W // (4 * thickness) + y_H1 // (4 * thickness)) % 2 == 1)
    part_HWC[core] = (1 - opacity) * original_HWC[enlarged][core] + opacity * colour_C
    part_HWC[inside & ~core] = colour_C


def _write_labels(
    picture: Image.Image,
    texts: list[Lettering],
    paints: list[tuple[int, int, int]],
    places: list[tuple[int, int] | None],
    factor: int,
) -> None:
    """Writes each text above the highest pixel of its instance, moved into the picture. A frame in
    the text's own colour sets it off from masks of the same colour."""
    draw = ImageDraw.Draw(picture)
    size = max(11, round(max(picture.size) / 45))
    taken: list[tuple[float, float, float, float]] = []
    for n, (lettered, place) in enumerate(zip(texts, places, strict=True)):
        if place is None or not lettered.text:
            continue
        text, letters = lettered.text, lettered.font(size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
        width, height = right - left + 4, bottom - top + 4
        x = max(min(place[0] * factor, picture.width - width), 0)
        y = min(max(place[1] * factor - height, 0), picture.height - height)
        box = (x, y, x + width, y + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        background = paints[n]
        # WCAG's relative luminance: at 0.18, black and white differ from it by the same ratio.
        luminance = np.dot((np.array(background) / 255) ** 2.2, (0.2126, 0.7152, 0.0722))
        ink = "black" if luminance > 0.18 else "white"
        draw.rectangle(box, fill=background, outline=ink)
        draw.text(
            (x + 2 - left, y + 2 - top),
            text,
            font=letters,
            fill=ink,
        )
