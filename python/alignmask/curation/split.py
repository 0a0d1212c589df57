"""Splits a data set into training and validation images: seeded, with a like share of every class
in both, and nothing of one group in both."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from alignmask._files import must_be_new, write_json
from alignmask.data.coco_json import read_coco_with_content
from alignmask.data.faults import CocoError


def split(
    annotations: Path,
    out: Path,
    *,
    share: float = 0.2,
    seed: int = 0,
    group: str | None = None,
) -> tuple[int, int]:
    """Write OUT/instances_train.json and OUT/instances_val.json, with the records as they are in
    the annotation file; returns the numbers of images.

    Groups are dealt one by one, the rarest class's first, to the side that lacks more of what they
    have: instances of every class, and images.

    Args:
        share: Of the images, for validation: more than 0 and less than 1.
        group: Regular expression; images whose file names it matches with the same text stay
            together, e.g. "^[^_]+" for patient_slice.png. What it does not match is a group of its
            own.

    Raises:
        ValueError: The share or the expression cannot be used, or there is one group alone.
        FileExistsError: One of the two files exists.
        CocoError: As `read_coco`.
    """
    if not 0 < share < 1:
        raise ValueError(f"data split: expected a share between 0 and 1, got {share:g}")
    try:
        pattern = re.compile(group) if group is not None else None
    except re.error as error:
        raise ValueError(
            f"data split: --group {group!r} is no regular expression: {error}"
        ) from error
    targets = [out / "instances_train.json", out / "instances_val.json"]
    for path in targets:
        must_be_new(path, "data split")
    file, content = read_coco_with_content(annotations)
    contents: dict[int, Counter[int]] = {image_id: Counter() for image_id in file.images}
    for annotation in file.annotations:
        if annotation.is_instance:
            contents[annotation.image_id][annotation.category_id] += 1
    groups: dict[Any, list[int]] = defaultdict(list)
    for image_id, image in file.images.items():
        found = pattern.search(image.file_name or "") if pattern else None
        groups[found.group() if found else (image_id,)].append(image_id)
    if len(groups) < 2:
        raise ValueError(f"data split: all {len(file.images)} images are one group: {group!r}")
    validation = _deal(list(groups.values()), contents, share, seed)
    for path, wanted in zip(targets, (set(contents) - validation, validation), strict=True):
        part = {
            **content,
            "images": [image for image in content["images"] if image["id"] in wanted],
            "annotations": [a for a in content["annotations"] if a["image_id"] in wanted],
        }
        try:
            write_json(path, part)
        except ValueError as error:
            raise CocoError(
                f"{annotations}: a value in it is no JSON number ({error}): `alignmask data check "
                "--fix` leaves such boxes and areas out"
            ) from error
    return len(contents) - len(validation), len(validation)


def _deal(
    groups: list[list[int]], contents: dict[int, Counter[int]], share: float, seed: int
) -> set[int]:
    """The image ids for validation."""
    random.Random(seed).shuffle(groups)
    total: Counter[Any] = Counter({"images": len(contents)})
    for found in contents.values():
        total.update(found)
    inside = []
    for members in groups:
        counts: Counter[Any] = Counter({"images": len(members)})
        for image_id in members:
            counts.update(contents[image_id])
        inside.append(counts)
    # Rare classes come first, while there is still room for them on either side.
    order = sorted(range(len(groups)), key=lambda n: min(total[key] for key in inside[n]))
    shares = (1 - share, share)
    dealt: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
    sides = [0] * len(groups)
    for n in order:
        lacks = [
            sum((shares[side] * total[key] - dealt[side][key]) / total[key] for key in inside[n])
            / shares[side]
            for side in (0, 1)
        ]
        sides[n] = int(lacks[1] > lacks[0])
        dealt[sides[n]].update(inside[n])
    if len(set(sides)) == 1:  # of very few groups
        smallest = min(range(len(groups)), key=lambda n: len(groups[n]))
        sides[smallest] = 1 - sides[smallest]
    return {
        image_id
        for members, side in zip(groups, sides, strict=True)
        if side
        for image_id in members
    }
