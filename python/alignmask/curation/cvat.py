"""CVAT's XML 1.1 for images, from and to COCO's format.

(hotcoco, which the package uses elsewhere, reads polygons alone and writes masks as boxes.)
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from alignmask._files import must_be_new, replacing
from alignmask.curation.drafts import (
    Instance,
    Shapes,
    clipped,
    ellipse,
    instances_of,
    write_draft,
)
from alignmask.data.batch import Size
from alignmask.data.draft import Draft
from alignmask.data.faults import CocoError, brief

WITHOUT_AREA = {
    "box": "boxes",
    "polyline": "polylines",
    "points": "points",
    "cuboid": "cuboids",
    "skeleton": "skeletons",
    "tag": "tags",
}
"""Shapes that are no mask, and what they are counted as."""


def convert_cvat(xml: Path, out: Path, *, classes: Sequence[str] | None = None) -> Counter[str]:
    """Write the COCO file of a "CVAT for images" XML file; returns what was read and left out,
    counted.

    Polygons, ellipses and brush masks are read. Shapes of one image with the same label and the
    same group are one instance.

    Args:
        out: The file to write. Must not exist.
        classes: The names of the classes, in the order of their ids; None takes the labels that the
            file lists.

    Raises:
        FileNotFoundError: The file does not exist.
        FileExistsError: `out` exists.
        CocoError: The file is not of the format, or shapes are not; all of them are counted.
    """
    must_be_new(out, "data")
    if not xml.is_file():
        raise FileNotFoundError(f"{xml}: no such file")
    try:
        root = ElementTree.parse(xml).getroot()
    except ElementTree.ParseError as error:
        raise CocoError(f"{xml}: malformed XML: {error}") from error
    images = root.findall("image")
    if not images:
        tracks = "tracks of a video: " if root.find("track") is not None else ""
        raise CocoError(f'{xml}: no image in it: {tracks}expected a "CVAT for images" XML file')
    if classes is None:
        listed = [(label.findtext("name") or "").strip() for label in root.findall("meta//label")]
        classes = list(dict.fromkeys(name for name in listed if name)) or None
    draft = Draft(classes)
    for image in images:
        _read_image(xml, image, draft)
    return write_draft(xml, draft, out)


def _read_image(xml: Path, image: ElementTree.Element, draft: Draft) -> None:
    where = f"{xml}: image id {brief(image.get('id'))}"
    try:
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        name = image.attrib["name"]
    except (KeyError, ValueError) as error:
        draft.faults.add("without name, width and height", f"{where}: {error}")
        return
    image_id = draft.add_image(name.replace("\\", "/"), size)
    shapes = Shapes(image_id, size)
    for number, shape in enumerate(image):
        place = f"{where}, {name}: {shape.tag} {number + 1}"
        if shape.tag in WITHOUT_AREA:
            draft.counts[f"{WITHOUT_AREA[shape.tag]} left out"] += 1
            continue
        label = shape.get("label")
        if label is None:
            draft.faults.add("without a label", place)
            continue
        try:
            region = _region(shape, size)
        except (KeyError, ValueError, OverflowError) as error:
            kind = f"no {error}" if isinstance(error, KeyError) else str(error)
            draft.faults.add("that are not as CVAT writes them", f"{place}: {kind}")
            continue
        group = shape.get("group_id") or "0"  # which is none
        shapes.add(label, None if group == "0" else group, region, place)
    shapes.add_to(draft)


def _region(shape: ElementTree.Element, size: Size) -> Any:
    """A polygon [x, y, x, y, ...], or a mask [H, W]. Raises KeyError, ValueError or
    OverflowError."""
    values = shape.attrib
    if shape.tag == "polygon":
        points = [point.split(",") for point in values["points"].split(";") if point.strip()]
        if any(len(point) != 2 for point in points):
            raise ValueError(f"expected points as x,y;x,y;..., got {brief(values['points'])}")
        return [float(value) for point in points for value in point]
    if shape.tag == "ellipse":
        center, radii = (
            (float(values["cx"]), float(values["cy"])),
            (
                float(values["rx"]),
                float(values["ry"]),
            ),
        )
        return ellipse(center, radii, float(values.get("rotation", 0)))
    if shape.tag != "mask":
        raise ValueError(f"expected a polygon, an ellipse or a mask, got {shape.tag}")
    left, top, width, height = (
        int(float(values[name])) for name in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in values["rle"].split(",") if run.strip()]
    if min(width, height) < 1 or min(runs, default=0) < 0 or sum(runs) != width * height:
        raise ValueError(
            f"the runs cover {sum(runs)} pixels, the mask has {width} x {height} (width x height)"
        )
    mask_P = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # in rows, from background on
    return clipped(mask_P.reshape(height, width), left, top, size)


def write_cvat(annotations: Path, out: Path) -> Counter[str]:
    """Write a "CVAT for images" XML file; returns what was written and left out, counted.

    Polygons stay as they are, and their parts have one group_id. Masks become masks, which is
    exact.

    Raises:
        FileExistsError: `out` exists.
        CocoError: As `read_coco`.
    """
    must_be_new(out, "data")
    counts: Counter[str] = Counter()
    file, found = instances_of(annotations, counts)
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels"
    )
    for number, name in enumerate(file.categories.values()):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        rgb = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.7, 0.9)  # far from its neighbours
        ElementTree.SubElement(label, "color").text = "#" + "".join(
            f"{round(255 * value):02x}" for value in rgb
        )
        ElementTree.SubElement(label, "attributes")
    for number, image in enumerate(file.images.values()):
        size = (image.height, image.width)
        element = ElementTree.SubElement(
            root, "image", id=str(number), name=image.file_name or str(image.id),
            width=str(image.width), height=str(image.height),
        )  # fmt: skip
        for group, instance in enumerate(found[image.id], 1):
            _write_shapes(element, instance, group, size)
    ElementTree.indent(root)
    with replacing(out) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)
    return +counts


def _write_shapes(image: ElementTree.Element, instance: Instance, group: int, size: Size) -> None:
    common = {"label": instance.name, "source": "file", "occluded": "0"}
    many = {"group_id": str(group)} if len(instance.polygons) > 1 else {}
    for polygon in instance.polygons:
        points = ";".join(
            f"{x:.10g},{y:.10g}" for x, y in zip(polygon[::2], polygon[1::2], strict=True)
        )
        ElementTree.SubElement(
            image, "polygon", {**common, "points": points, "z_order": "0", **many}
        )
    if instance.polygons:
        return
    mask_HW, left, top = instance.cropped(size)
    part_P = mask_HW.ravel()
    ends = np.flatnonzero(np.diff(part_P, append=~part_P[-1])) + 1
    runs = np.diff(ends, prepend=0).tolist()
    ElementTree.SubElement(
        image, "mask",
        {
            **common,
            "rle": ", ".join(map(str, [0, *runs] if part_P[0] else runs)),
            "left": str(left), "top": str(top),
            "width": str(mask_HW.shape[1]), "height": str(mask_HW.shape[0]), "z_order": "0",
        },
    )  # fmt: skip
