"""One image as two models rank their masks: of each model the best-scored masks, as many as there
are objects, coloured by what they are worth.

    python bench/ranking_picture.py RUN RUN ANNOTATIONS IMAGES OUT.jpg --names A B --image 12

Right: the first mask of an object with an IoU of 0.5 or more. Second: a later one. Wrong: the rest.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage

import alignmask
from alignmask.data import CocoDataset
from alignmask.pictures.fonts import font

COLOURS = {"right": (40, 190, 90), "second": (250, 170, 0), "wrong": (235, 50, 50)}


def worth(masks_NHW: np.ndarray, truths_MHW: np.ndarray) -> list[str]:
    """What each mask is, best-scored first."""
    encode = [
        coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        for masks in (masks_NHW, truths_MHW)
    ]
    iou_NM = coco_mask.iou(*encode, [0] * len(truths_MHW))
    found: set[int] = set()
    result = []
    for iou_M in iou_NM:
        covered = np.flatnonzero(iou_M >= 0.5)
        free = [m for m in covered if m not in found]
        if free:
            found.add(max(free, key=lambda m: iou_M[m]))
        result.append("right" if free else "second" if len(covered) else "wrong")
    return result


def draw(image_HWC: np.ndarray, masks_NHW: np.ndarray, kinds: list[str], scale: int) -> Image.Image:
    height, width = image_HWC.shape[:2]
    picture = Image.fromarray(image_HWC).resize(
        (width * scale, height * scale), Image.Resampling.LANCZOS
    )
    pixels = np.asarray(picture).astype(float)
    order = sorted(range(len(kinds)), key=lambda n: ("right", "second", "wrong").index(kinds[n]))
    for n in order:
        mask = masks_NHW[n].repeat(scale, 0).repeat(scale, 1)
        line = mask & ~ndimage.binary_erosion(mask, iterations=2)
        colour = np.array(COLOURS[kinds[n]], float)
        pixels[mask] = 0.75 * pixels[mask] + 0.25 * colour
        pixels[line] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def sheet(columns: list[tuple[str, str, Image.Image]]) -> Image.Image:
    gap, head = 8, 52
    width = sum(picture.width for *_, picture in columns) + gap * (len(columns) - 1)
    whole = Image.new("RGB", (width, head + columns[0][2].height), "white")
    pen, x = ImageDraw.Draw(whole), 0
    for title, below, picture in columns:
        pen.text((x, 4), title, font=font(19), fill="black")
        pen.text((x, 29), below, font=font(15), fill=(90, 90, 90))
        whole.paste(picture, (x, head))
        x += picture.width + gap
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("first", "second", "annotations", "images", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--names", nargs=2, default=("first", "second"))
    parser.add_argument(
        "--image", type=int, default=None, help="image id; all are listed without it"
    )
    parser.add_argument("--width", type=int, default=400, help="of each picture, pixels")
    arguments = parser.parse_args()
    dataset = CocoDataset(arguments.images, arguments.annotations)
    models = [alignmask.load(path) for path in (arguments.first, arguments.second)]
    ids = dataset.image_ids if arguments.image is None else [arguments.image]
    total = [Counter(), Counter()]
    for image_id in ids:
        sample = dataset.load(dataset.image_ids.index(image_id))
        truths_MHW, image_HWC = sample.masks_NHW.numpy(), sample.image_CHW.permute(1, 2, 0).numpy()
        scale = max(1, round(arguments.width / image_HWC.shape[1]))
        columns = [
            ("image", f"{len(truths_MHW)} objects", draw(image_HWC, truths_MHW[:0], [], scale))
        ]
        for name, model, counted in zip(arguments.names, models, total, strict=True):
            masks_NHW = model.predict(image_HWC)[: len(truths_MHW)].masks.numpy()
            kinds = worth(masks_NHW, truths_MHW)
            counts = Counter(kinds)
            counted.update(counts)
            text = ", ".join(f"{counts[kind]} {kind}" for kind in COLOURS)
            columns.append(
                (name, f"the best {len(kinds)}: {text}", draw(image_HWC, masks_NHW, kinds, scale))
            )
        print(image_id, *(below for _, below, _ in columns), sep=" | ", flush=True)
        if arguments.image is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            sheet(columns).save(arguments.out, quality=90)
    for name, counted in zip(arguments.names, total, strict=True):
        print(name, {kind: counted[kind] for kind in COLOURS})


if __name__ == "__main__":
    main()
