"""Mends annotation files where there is one way to do it; what it changes, it counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from alignmask._files import must_be_new, write_json
from alignmask.data.coco_json import read_coco_json
from alignmask.data.faults import CocoError, Faults, is_number
from alignmask.data.file_names import find_files
from alignmask.data.masks import are_normalised


def mend(annotations: Path, out: Path, images: Path | None = None) -> Counter[str]:
    """Write a mended copy of an annotation file; returns what was changed, counted by kind.

    Points as pairs become flat lists; a polygon without the list around it gets one; shares of the
    image become pixels where most polygons are such; areas that are no number are left out, so that
    the mask's counts; `iscrowd` becomes 0 where every annotation is a crowd; annotations without a
    polygon of 3 points and second copies of an annotation are removed; annotation ids that occur
    twice are given anew; file names get the spelling of the files. All other records and keys are
    kept.

    Args:
        out: The file to write. Must not exist.
        images: The images' folder; None leaves file names as they are.

    Raises:
        FileExistsError: `out` exists.
        CocoError: The file cannot be read as a COCO file at all, or has NaN or infinity.
    """
    must_be_new(out, "data check")
    content = read_coco_json(annotations, images)
    changes: Counter[str] = Counter()
    records = [record for record in content["annotations"] if isinstance(record, dict)]
    for record in records:
        _mend_values(record, changes)
    if _are_shares(records):
        _to_pixels(records, content["images"], changes)
    if records and all(record.get("iscrowd") in (1, True) for record in records):
        for record in records:
            record["iscrowd"] = 0
            changes["crowds made instances"] += 1
    content["annotations"] = _without_copies(content["annotations"], changes)
    ids = [record.get("id") for record in content["annotations"] if isinstance(record, dict)]
    if len(set(map(repr, ids))) < len(ids):
        for number, record in enumerate(content["annotations"], 1):
            if isinstance(record, dict):
                record["id"] = number
                changes["annotation ids given anew"] += 1
    if images is not None:
        _respell(content["images"], images, changes)
    try:
        write_json(out, content)
    except ValueError as error:
        raise CocoError(
            f"{annotations}: it has numbers that are NaN or infinite, which nothing can mend: remove "
            "the annotations that `alignmask data check` names"
        ) from error
    return changes


def _mend_values(record: dict[str, Any], changes: Counter[str]) -> None:
    segmentation = record.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        if all(is_number(value) for value in segmentation):
            record["segmentation"] = [segmentation]
            changes["polygons put into a list"] += 1
        elif all(_is_pair(value) for value in segmentation) and len(segmentation) > 2:
            record["segmentation"] = [[value for pair in segmentation for value in pair]]
            changes["polygons of pairs made flat"] += 1
        elif any(isinstance(p, list) and p and all(map(_is_pair, p)) for p in segmentation):
            record["segmentation"] = [
                [value for pair in polygon for value in pair]
                if isinstance(polygon, list) and all(map(_is_pair, polygon))
                else polygon
                for polygon in segmentation
            ]
            changes["polygons of pairs made flat"] += 1
    area: Any = record.get("area")
    if "area" in record and (not is_number(area) or area < 0):
        del record["area"]
        changes["areas left out"] += 1
    box = record.get("bbox")
    if isinstance(box, list) and not all(map(is_number, box)):
        del record["bbox"]
        changes["boxes left out"] += 1
    if record.get("iscrowd") in ("0", "1"):
        record["iscrowd"] = int(record["iscrowd"])
        changes["iscrowd made a number"] += 1


def _are_shares(records: list[dict[str, Any]]) -> bool:
    """Whether most annotations have polygons with coordinates between 0 and 1, by the rule of
    `read_coco`."""
    masks = [record["segmentation"] for record in records if record.get("segmentation")]
    shares = [
        mask
        for mask in masks
        if isinstance(mask, list)
        and all(isinstance(polygon, list) and all(map(is_number, polygon)) for polygon in mask)
        and are_normalised(mask, (3, 3))
    ]
    return 2 * len(shares) > len(masks)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _to_pixels(records: list[dict[str, Any]], images: list[Any], changes: Counter[str]) -> None:
    sizes = {
        image["id"]: (image.get("width"), image.get("height"))
        for image in images
        if isinstance(image, dict) and type(image.get("id")) is int
    }
    for record in records:
        segmentation, image_id = record.get("segmentation"), record.get("image_id")
        size = sizes.get(image_id) if type(image_id) is int else None
        if size is None or not all(map(is_number, size)) or not isinstance(segmentation, list):
            continue
        if not all(isinstance(polygon, list) for polygon in segmentation):
            continue
        values = [value for polygon in segmentation for value in polygon]
        if values and all(is_number(value) and 0 <= value <= 1 for value in values):
            record["segmentation"] = [
                [value * size[place % 2] for place, value in enumerate(polygon)]
                for polygon in segmentation
            ]
            for shares in ("area", "bbox"):  # without them, the mask's count
                record.pop(shares, None)
            changes["polygons multiplied by the image's size"] += 1


def _without_copies(records: list[Any], changes: Counter[str]) -> list[Any]:
    kept, seen = [], set()
    for record in records:
        if isinstance(record, dict):
            segmentation = record.get("segmentation")
            if (
                isinstance(segmentation, list)
                and not any(
                    isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation
                )
                and all(isinstance(polygon, list) for polygon in segmentation)
            ):
                changes["annotations without a polygon removed"] += 1
                continue
            if not segmentation:  # nothing shows that it is a copy
                kept.append(record)
                continue
            key = repr(
                [record.get(k) for k in ("image_id", "category_id", "iscrowd")] + [segmentation]
            )
            if key in seen:
                changes["copies of annotations removed"] += 1
                continue
            seen.add(key)
        kept.append(record)
    return kept


def _respell(images: list[Any], folder: Path, changes: Counter[str]) -> None:
    named = [i for i in images if isinstance(i, dict) and isinstance(i.get("file_name"), str)]
    names = [image["file_name"] for image in named]
    found, _ = find_files(folder, names, names, Faults())
    for image, file in zip(named, found, strict=True):
        if image["file_name"] != file:
            image["file_name"] = file
            changes["file names respelt"] += 1
