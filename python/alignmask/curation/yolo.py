"""YOLO's segmentation format, from and to COCO's.

The format has no holes and no instances of several parts: each part becomes a polygon of its own
when it is written, which is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from alignmask._files import must_be_new, new_folder
from alignmask.curation.drafts import files_of, instances_of, write_draft
from alignmask.data.outlines import outlines
from alignmask.data.yolo import read_yolo


def convert_yolo(folder: Path, out: Path, images: Path | None = None) -> Counter[str]:
    """Write the COCO file of a folder of YOLO labels; returns what was read and left out, counted.

    Args:
        folder, images: As in `read_yolo`.
        out: The file to write. Must not exist.

    Raises:
        FileExistsError: `out` exists.
        CocoError: Images are missing, or lines are not of the format; all of them are counted.
    """
    must_be_new(out, "data")
    return write_draft(folder, read_yolo(folder, images), out)


def write_yolo(annotations: Path, out: Path) -> Counter[str]:
    """Write a folder of YOLO labels, with the subfolders of the images, and data.yaml; returns what
    was written and left out, counted.

    Raises:
        FileExistsError: `out` exists.
        CocoError: As `read_coco`; or two images would have one label file.
    """
    must_be_new(out, "data")
    counts: Counter[str] = Counter()
    file, found = instances_of(annotations, counts)
    lines: dict[int, list[str]] = {image_id: [] for image_id in file.images}
    labels = {category_id: label for label, category_id in enumerate(file.categories)}
    for image_id, image in file.images.items():
        for instance in found[image_id]:
            polygons = outlines(instance.mask_HW((image.height, image.width)))
            counts["holes filled"] += sum(len(polygon) - 1 for polygon in polygons)
            counts["parts made instances of their own"] += len(polygons) - 1
            for outer, *_ in polygons:
                shares = (np.array(outer) / (image.width, image.height)).ravel()
                values = " ".join(f"{share:.6f}" for share in shares)
                lines[image_id].append(f"{labels[instance.record.category_id]} {values}")
    counts["images"] = counts.pop("images")  # is listed last
    targets = files_of(file, ".txt")
    names = "".join(
        f"  {n}: {json.dumps(name)}\n" for n, name in enumerate(file.categories.values())
    )
    with new_folder(out) as part:
        for image_id, target in targets.items():
            path = part / "labels" / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines[image_id]))
        (part / "data.yaml").write_text(f"path: .\nnames:\n{names}", encoding="utf-8")
    return +counts
