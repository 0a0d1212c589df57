"""`alignmask predict` on films: a film with the masks drawn over it, and a line of JSON for each
frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from alignmask import Predictor
from alignmask.config import Colours
from alignmask.evaluation.predictions import to_coco_results
from alignmask.model import Instances
from alignmask.model.sparse import SparseInstances
from alignmask.predicting.outputs import MARK
from alignmask.predicting.video import SUFFIXES, Film, writing_film, writing_lines

ENDINGS = {"overlay": ".mp4", "coco": ".jsonl"}
Predict = Callable[[list[torch.Tensor]], Sequence[Instances | SparseInstances]]


def are_films(paths: Sequence[Path], formats: Collection[str]) -> bool:
    """Whether films are named. Raises ValueError if images are, too, or for formats that films do
    not have."""
    films = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if not films:
        return False
    if len(films) < len(paths):
        raise ValueError(f"predict: name films ({films[0]}) and images in two calls")
    if other := [kind for kind in formats if kind not in ENDINGS]:
        raise ValueError(f"predict: --format {other[0]} is for images: films have overlay and coco")
    for path in films:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file or folder")
    return True


def outputs_of(paths: Sequence[Path], out: Path, formats: Collection[str]) -> list[dict[str, Path]]:
    """The files to write for each film, by format."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) < len(stems):
        stems = [f"{number}_{stem}" for number, stem in enumerate(stems, 1)]
    return [{kind: out / f"{stem}{ENDINGS[kind]}" for kind in formats} for stem in stems]


def predict_film(
    predictor: Predictor,
    path: Path,
    outputs: dict[str, Path],
    predict: Predict,
    batch_size: int,
    colours: Colours,
    advance: Callable[[int, int], None],
) -> tuple[int, int]:
    """Returns the numbers of frames and of instances.

    Raises:
        ValueError: The film is damaged; nothing is left of its outputs then.
    """
    film = Film(path)
    frames = instances = 0
    with ExitStack() as stack:
        line = stack.enter_context(writing_lines(outputs["coco"])) if "coco" in outputs else None
        picture = (
            stack.enter_context(writing_film(outputs["overlay"], film.rate, MARK))
            if "overlay" in outputs
            else None
        )
        each = iter(film)
        while some := list(itertools.islice(each, batch_size)):
            for frame, found in zip(some, predict([f.image_CHW for f in some]), strict=True):
                if line is not None:
                    line(_line(predictor, path, frame.number, frame.time, found))
                if picture is not None:
                    drawn = predictor.draw(frame.image_CHW, found, threshold=0, colours=colours)
                    picture.write(drawn, frame.time)
                frames += 1
                instances += len(found)
            advance(frames, max(film.frames, frames))
        if not frames:
            raise ValueError(f"{path}: the film has no frames")
    return frames, instances


def _line(
    predictor: Predictor, path: Path, number: int, time: float, found: Instances | SparseInstances
) -> dict[str, Any]:
    entries = to_coco_results(found, number, predictor.category_ids)
    quality = [None] * len(entries) if found.quality_N is None else found.quality_N.tolist()
    return {
        "frame": number,
        "time": round(time, 6),
        "file_name": str(path),
        "instances": [
            {
                "class": predictor.class_names[label],
                **{key: value for key, value in entry.items() if key != "image_id"},
                **({} if sure is None else {"quality": sure}),
            }
            for entry, label, sure in zip(entries, found.labels_N.tolist(), quality, strict=True)
        ],
    }
