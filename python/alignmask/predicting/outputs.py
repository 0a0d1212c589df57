"""The files that `alignmask predict` writes: their names, their contents, and which existing files
they may replace.

N instances of one image, H x W pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alignmask._files import replacing, write_json
from alignmask.config import PredictionFormat
from alignmask.data.images import png_software
from alignmask.data.outlines import outlines
from alignmask.predicting.video import film_made_here

if TYPE_CHECKING:
    from alignmask.model import Instances
    from alignmask.model.sparse import SparseInstances

ENDINGS: Mapping[PredictionFormat, str] = {
    "overlay": ".png",
    "labels": "_labels.png",
    "geojson": ".geojson",
}
"""What is written for every image, as its name without the suffix and this."""
COCO_FILE = "predictions.json"
"""What is written for all images, in the format "coco"."""
MARK = "alignmask predict"
"""What every file that predict made is recognised by, except for predictions.json."""
MOST_LABELS = 65_535


def output_names(
    files: Sequence[Path], formats: Collection[PredictionFormat]
) -> list[dict[PredictionFormat, Path]]:
    """The names of the outputs for each file, in the subfolder that the file is in.

    If two outputs would have the same name, which includes names that differ in capital letters
    alone, all names begin with the file's position.

    Args:
        files: Relative to the folder that was named.
    """
    names = [_names(file, file.stem, formats) for file in files]
    if _differ(names):
        return names
    return [_names(file, f"{k}_{file.stem}", formats) for k, file in enumerate(files, 1)]


def _names(
    file: Path, stem: str, formats: Collection[PredictionFormat]
) -> dict[PredictionFormat, Path]:
    return {
        kind: file.with_name(stem + ending) for kind, ending in ENDINGS.items() if kind in formats
    }


def _differ(names: Sequence[Mapping[PredictionFormat, Path]]) -> bool:
    every = [str(name).casefold() for each in names for name in each.values()]
    return len(set(every)) == len(every)


# ---- what may be replaced


def refuse_to_overwrite(outputs: Collection[Path], inputs: Collection[Path]) -> None:
    """Raises ValueError if an output would take the place of an input, under whatever name, or of a
    file that predict did not make."""
    files = {_identity(file) for file in inputs} - {None}
    present = [output for output in outputs if os.path.lexists(output)]
    if mine := [output for output in present if _identity(output) in files]:
        raise ValueError(
            f"predict: this would overwrite {_some(mine, 'of the images to predict on')}: nothing "
            "was predicted; choose another folder with --out"
        )
    if foreign := [output for output in present if not made_here(output)]:
        raise ValueError(
            f"predict: this would overwrite {_some(foreign, 'that predict did not make')}: nothing "
            "was predicted; choose another folder with --out, or remove them"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """What all names of a file share: links, other spellings. None for a link to nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _some(files: Sequence[Path], which: str) -> str:
    shown = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
    return f"{len(files)} {'file' if len(files) == 1 else 'files'} {which} ({shown})"


def made_here(path: Path) -> bool:
    """Whether predict made a file, as far as its contents say."""
    try:
        if path.suffix.lower() == ".png":
            return png_software(path) == MARK
        if path.name == COCO_FILE:
            return _is_ours(json.loads(path.read_bytes()))
        if path.suffix == ENDINGS["geojson"]:
            collection = json.loads(path.read_bytes())
            return isinstance(collection, dict) and collection.get("generator") == MARK
        if path.suffix in (".jsonl", ".mp4"):
            return film_made_here(path, MARK)
    except (OSError, ValueError, SyntaxError, RecursionError, ImportError):
        pass  # a damaged file, a folder, another kind of file
    return False


def _is_ours(entries: Any) -> bool:
    """Whether this is what predict writes as predictions.json. Results of other origin have no file
    names."""
    keys = {"file_name", "image_id", "segmentation", "score"}
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and keys <= entry.keys() for entry in entries
    )


# ---- what is written


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG that says who made it."""
    mark = PngInfo()
    mark.add_text("Software", MARK)
    with replacing(path) as part:
        # The default compression takes longer than the model.
        picture.save(part, format="PNG", pnginfo=mark, compress_level=1)


def label_map(masks_NHW: Any) -> np.ndarray:
    """The number of the instance that each pixel belongs to, from 1, or 0: uint16 [H, W]. Where
    instances overlap, the first of them is on top.

    Raises ValueError for more instances than 16 bits can number.
    """
    if len(masks_NHW) > MOST_LABELS:
        raise ValueError(
            f"predict: a label map numbers at most {MOST_LABELS:,} instances, and there are "
            f"{len(masks_NHW):,}: raise --threshold, or choose another --format"
        )
    label_HW = np.zeros(masks_NHW.shape[1:], np.uint16)
    for n in reversed(range(len(masks_NHW))):
        label_HW[np.asarray(masks_NHW[n])] = n + 1  # one at a time: they may be encoded
    return label_HW


def write_labels(found: Instances | SparseInstances, path: Path) -> None:
    save_picture(Image.fromarray(label_map(found.masks_NHW)), path)


def geojson(
    found: Instances | SparseInstances,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    file_name: str,
) -> dict[str, Any]:
    """The outlines of one image's instances as a GeoJSON feature collection, in pixels: (0, 0) is
    the upper left corner of the upper left pixel.

    A feature is of one polygon, or of several (MultiPolygon). Class and score are there twice: once
    for everybody, and once where QuPath looks for them.
    """
    features = []
    for n, (label, score) in enumerate(
        zip(found.labels_N.tolist(), found.scores_N.tolist(), strict=True)
    ):
        measured = {"score": score}
        if found.quality_N is not None:
            measured["quality"] = float(found.quality_N[n])
        polygons = [
            [[*ring, ring[0]] for ring in polygon]
            for polygon in outlines(found.masks_NHW[n].numpy())
        ]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": polygons[0]}
                if len(polygons) == 1
                else {"type": "MultiPolygon", "coordinates": polygons},
                "properties": {
                    "class": class_names[label],
                    "category_id": category_ids[label],
                    **measured,
                    "objectType": "annotation",
                    "classification": {"name": class_names[label]},
                    "measurements": measured,
                },
            }
        )
    return {
        "type": "FeatureCollection",
        "generator": MARK,
        "file_name": file_name,
        "features": features,
    }


def write_geojson(
    found: Instances | SparseInstances,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    file_name: str,
    path: Path,
) -> None:
    write_json(path, geojson(found, class_names, category_ids, file_name))
