"""What `alignmask predict` does with its options, which are in `predict`: they need no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

import alignmask
from alignmask._files import write_json
from alignmask._printing import counted
from alignmask.commands._console import choose_device, complain, note, progress
from alignmask.commands._films import Predict, are_films, outputs_of, predict_film
from alignmask.config import Colours, PredictionFormat, ShownSuppression, TileChoice
from alignmask.data import ImageError, read_image
from alignmask.evaluation.predictions import to_coco_results
from alignmask.model import Instances
from alignmask.model.sparse import DENSE_LIMIT, SparseInstances
from alignmask.model.tiles import in_words, tiles_for
from alignmask.predicting.inputs import find_images, has_several_pictures
from alignmask.predicting.outputs import (
    COCO_FILE,
    output_names,
    refuse_to_overwrite,
    save_picture,
    write_geojson,
    write_labels,
)


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    recursive: bool,
    formats: Sequence[PredictionFormat],
    threshold: float | Literal["best-f1"],
    suppression: ShownSuppression | None,
    trusted: bool,
    tile: TileChoice,
    overlap: float | None,
    colours: Colours,
    sample_range: tuple[float, float] | None,
    batch_size: int,
    device: str,
) -> int:
    """Predict on files as `predict.command` says; returns the exit code."""
    films = are_films(images, formats)
    if films:
        made = outputs_of(images, out, formats)
        outputs, files, left_out = [path for each in made for path in each.values()], [*images], []
    else:
        found = find_images(images, out, recursive=recursive)
        files, left_out = [file.path for file in found.files], found.left_out()
        names, ids = (
            output_names([file.relative for file in found.files], formats),
            image_ids(files),
        )
        outputs = [out / name for each in names for name in each.values()]
        if "coco" in formats:
            outputs.append(out / COCO_FILE)
    refuse_to_overwrite(outputs, files)
    for sentence in left_out:
        note(sentence)
    predictor = alignmask.load(checkpoint, device=choose_device(device), sample_range=sample_range)
    suppression = _suppression(predictor, suppression, trusted)
    tiles = tiles_for(predictor.config.data, tile, overlap)
    if not trusted:  # the guarantee refuses other tiles
        _note_other_tiles(predictor, None if tiles is None else tiles.side)

    def predict(images: list[Tensor]) -> Sequence[Instances | SparseInstances]:
        return predictor.predict_encoded(
            images, threshold=threshold, suppression=suppression, trusted=trusted, tile=tile,
            overlap=overlap, batch_size=batch_size,
        )  # fmt: skip

    for folder in {output.parent for output in outputs}:
        folder.mkdir(parents=True, exist_ok=True)
    if films:
        return _predict_films(
            predictor, files, made, predict, batch_size, threshold, trusted, colours
        )
    data = predictor.config.data
    entries: list[dict[str, Any]] = []
    unreadable: list[str] = []
    several: list[Path] = []
    instances = 0

    def read() -> Iterator[tuple[int, Path, Tensor]]:
        for position, file in enumerate(files):
            advance(position, len(files))
            try:
                image_CHW = read_image(file, exif=data.exif, sample_range=data.sample_range)
            except ImageError as error:  # the others are worth having
                unreadable.append(str(error))
                continue
            if has_several_pictures(file):
                several.append(file)
            yield position, file, image_CHW

    with progress("predicting") as advance:
        for _, alike in itertools.groupby(read(), lambda entry: entry[2].shape):
            while some := list(itertools.islice(alike, batch_size if tiles is None else 1)):
                for (position, file, image_CHW), predicted in zip(
                    some, predict([image_CHW for *_, image_CHW in some]), strict=True
                ):
                    instances += len(predicted)
                    _write(predictor, file, image_CHW, predicted, names[position], out, colours)
                    if "coco" in formats:
                        entries += _coco_entries(
                            predicted, file, ids[position], predictor.category_ids
                        )
        advance(len(files), len(files))
    if "coco" in formats:
        write_json(out / COCO_FILE, entries)
    if several:
        files_have, more = (
            ("1 file has", "") if len(several) == 1 else (f"{len(several)} files have", ", ...")
        )
        note(f"{files_have} several pictures, of which the first was used: {several[0]}{more}")
    images_read = counted(len(files) - len(unreadable), "image")
    *most, last = (words for kind, words in WRITTEN.items() if kind in formats)
    written = f"{', '.join(most)} and {last}" if most else last
    print(
        f"{counted(instances, 'instance')} {_scored(threshold, trusted)} in {images_read}: {written} "
        f"in {out}"
    )
    if len(unreadable) > 1:
        unreadable.insert(0, f"{len(unreadable)} images could not be read:")
    return complain("\n".join(unreadable)) if unreadable else 0


def _scored(threshold: float | str, trusted: bool) -> str:
    if trusted:
        return "that the guarantee covers (--trusted)"
    return (
        "from the threshold of the best F1 of each class on"
        if threshold == "best-f1"
        else f"with a score of {threshold:g} or more (--threshold)"
    )


def _predict_films(
    predictor: alignmask.Predictor,
    files: Sequence[Path],
    outputs: Sequence[dict[str, Path]],
    predict: Predict,
    batch_size: int,
    threshold: float | str,
    trusted: bool,
    colours: Colours,
) -> int:
    """The last part of the command, for films; returns the exit code."""
    unreadable: list[str] = []
    for file, made in zip(files, outputs, strict=True):
        try:
            with progress(f"predicting on {file.name}") as advance:
                frames, instances = predict_film(
                    predictor, file, made, predict, batch_size, colours, advance
                )
        except ValueError as error:  # the others are worth having
            unreadable.append(str(error))
            continue
        print(
            f"{file}: {counted(instances, 'instance')} {_scored(threshold, trusted)} in "
            f"{counted(frames, 'frame')}: {' and '.join(map(str, made.values()))}"
        )
    return complain("\n".join(unreadable)) if unreadable else 0


WRITTEN: dict[PredictionFormat, str] = {
    "overlay": "pictures",
    "labels": "label maps",
    "geojson": "GeoJSON files",
    "coco": COCO_FILE,
}
"""The formats, as the last line names them."""


def _note_other_tiles(predictor: alignmask.Predictor, tile: int | None) -> None:
    """Says so if the calibration is of other predictions."""
    calibration = predictor.calibration
    if calibration is not None and calibration.fit.tile != tile:
        note(
            f"quality, and the thresholds of the best F1, are of predictions "
            f"{in_words(calibration.fit.tile)}; these are {in_words(tile)}: `alignmask calibrate "
            f"--tile {tile or 'whole'}` makes them agree"
        )


def _suppression(
    predictor: alignmask.Predictor, asked: ShownSuppression | None, trusted: bool
) -> ShownSuppression:
    """What was asked for, or the default. Says so if the calibration is of other predictions."""
    calibration = predictor.calibration
    made_with = "off" if calibration is None else calibration.fit.suppression
    chosen: ShownSuppression = asked or ("off" if trusted and made_with == "off" else "hard")
    if calibration is not None and made_with != chosen and not trusted:
        note(
            f"quality, and the thresholds of the best F1, are of predictions with suppression "
            f"{made_with}; these have {chosen}: `alignmask calibrate --suppression {chosen}` makes "
            "them agree"
        )
    return chosen


def _write(
    predictor: alignmask.Predictor,
    file: Path,
    image_CHW: Tensor,
    predicted: Instances | SparseInstances,
    names: Mapping[PredictionFormat, Path],
    out: Path,
    colours: Colours,
) -> None:
    """Write what belongs to one image."""
    for kind, name in names.items():
        if kind == "overlay" and math.prod(predicted.masks_NHW.shape) > DENSE_LIMIT:
            note(
                f"no overlay of {file}: {len(predicted)} masks of such an image do not fit into "
                "memory; raise --threshold, or look at --format labels or geojson"
            )
        elif kind == "overlay":
            picture = predictor.draw(image_CHW, predicted, threshold=0, colours=colours)
            save_picture(picture, out / name)
        elif kind == "labels":
            write_labels(predicted, out / name)
        else:
            classes = predictor.class_names, predictor.category_ids
            write_geojson(predicted, *classes, str(file), out / name)


def _coco_entries(
    predicted: Instances | SparseInstances, file: Path, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    entries = to_coco_results(predicted, image_id, category_ids)
    if predicted.quality_N is not None:
        entries = [
            {**entry, "quality": q}
            for entry, q in zip(entries, predicted.quality_N.tolist(), strict=True)
        ]
    return [{**entry, "file_name": str(file)} for entry in entries]


def image_ids(files: Sequence[Path]) -> list[int]:
    """The numbers that the files are named by, if all are and no two are equal; otherwise 1, 2,
    ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))
