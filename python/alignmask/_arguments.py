"""What the arguments of the verbs stand for: a model or results, its data, its way of scoring."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignmask._printing import counted
from alignmask.analysis.compare import unique_names
from alignmask.checkpoint import load_config, released, resolve
from alignmask.config import DataConfig, ScoreMode, TileChoice
from alignmask.data import CocoDataset, evaluation_transform, val_dataset
from alignmask.evaluation.predictions import predict_dataset
from alignmask.evaluation.results_file import Results
from alignmask.exporting.files import ExportedModel
from alignmask.exporting.segmenter import inputs_of
from alignmask.loading import load
from alignmask.model.tiles import tiles_for
from alignmask.predicting.inputs import find_images
from alignmask.predictor import Predictor
from alignmask.pretrained.read import MASK2FORMER_SUFFIXES

PathLike = str | os.PathLike[str]
Device = str | torch.device
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows how far something is: called with what is done, it returns a context manager that yields a
function of (number done, number in total)."""
PHOTOS = 16
"""How many photos an exported file and its model are compared on."""
WEIGHTS = (".safetensors", *MASK2FORMER_SUFFIXES)
"""Suffixes of weights. Only the first can be a checkpoint's; the others are refused as one, with
advice."""


@contextlib.contextmanager
def quiet(_: str) -> Iterator[Callable[[int, int], None]]:
    """The `Progress` that shows nothing."""
    yield lambda done, total: None


def are_results(given: PathLike | Sequence[dict[str, Any]] | Results) -> bool:
    """Whether it is a COCO results file, or the content of one; otherwise it names a checkpoint."""
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        return path.suffix == ".json" or (path.is_file() and path.suffix not in WEIGHTS)
    return True


def as_predictor(model: Any, device: Device) -> Predictor:
    return model if isinstance(model, Predictor) else load(model, device)


def named_models(
    models: Sequence[PathLike] | Mapping[str, PathLike | Predictor],
) -> dict[str, Path | Predictor]:
    """The models by name. Raises FileNotFoundError for a path that does not exist, ValueError if
    there is no model."""
    if isinstance(models, (str, os.PathLike)):
        models = [models]
    given: list[Path | Predictor] = [
        model if isinstance(model, Predictor) else Path(model)
        for model in (models.values() if isinstance(models, Mapping) else models)
    ]
    if not given:
        raise ValueError("analyze: name at least one checkpoint or results file")
    paths = [model for model in given if isinstance(model, Path)]
    for path in paths:
        if not path.exists() and str(path) not in released():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if isinstance(models, Mapping):
        return dict(zip(models, given, strict=True))
    if len(paths) < len(given):
        raise TypeError("analyze: give loaded models by name: {'name': predictor, ...}")
    return dict(zip(unique_names(paths), given, strict=True))


def common_data(
    models: Mapping[str, Path | Predictor], annotations: PathLike | None, images: PathLike | None
) -> CocoDataset | None:
    """The data that all models are measured on; None: that of an annotation file without its
    images.

    Raises ValueError if it is not clear which data is meant.
    """
    trained = {
        name: model
        for name, model in models.items()
        if isinstance(model, Predictor) or not are_results(model)
    }
    if annotations is not None:
        if images is None and trained:
            raise ValueError(
                f"analyze: {next(iter(trained))} is to predict on {annotations}: give its images, "
                "too"
            )
        return None if images is None else CocoDataset(Path(images), Path(annotations), masks=False)
    if images is not None or len(trained) < len(models):
        raise ValueError(
            "analyze: give annotations: only models alone have validation data of their own"
        )
    own = {
        name: model.config.data
        if isinstance(model, Predictor)
        else load_config(resolve(model)).data
        for name, model in trained.items()
    }
    first, *others = own
    for name, data in own.items():
        _require_own_data("analyze", name, data)
    for name in others:
        if _validation_settings(own[name]) != _validation_settings(own[first]):
            raise ValueError(
                f"analyze: {first} and {name} have different validation data: give annotations and "
                "images"
            )
    return val_dataset(own[first], masks=False)


def _require_own_data(verb: str, name: str, data: DataConfig) -> None:
    """Raises ValueError for a model that comes with the package."""
    if data.shapes is None and data.val_annotations is None:
        raise ValueError(
            f"{verb}: {name} comes without its validation data: give images and annotations"
        )


def _validation_settings(data: DataConfig) -> tuple[object, ...]:
    return data.val_images, data.val_annotations, data.val_limit, data.shapes


def evaluation_data(
    predictor: Predictor,
    images: PathLike | None,
    annotations: PathLike | None,
    limit: int | None = None,
) -> CocoDataset:
    """The data to evaluate a model on, resized as the model wants it; by default that of its own
    run.

    Raises ValueError if half of it is given, or if its categories are not the model's.
    """
    data = predictor.config.data
    if images is None and annotations is None:
        _require_own_data("evaluate", predictor.config.name, data)
        dataset = val_dataset(data, masks=False)
    elif images is None or annotations is None:
        raise ValueError("evaluate: give both images and annotations, or neither of them")
    else:
        dataset = _prepared(data, images, annotations, limit)
    _require_classes(dataset, predictor.class_names)
    return dataset


def results_of_exported(
    path: Path,
    images: PathLike | None,
    annotations: PathLike | None,
    batch_size: int,
    workers: int,
    tile: TileChoice,
    overlap: float | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The predictions of an exported file as COCO results.

    Raises ValueError if its data is not given, or if the categories are not its classes.
    """
    if images is None or annotations is None:
        raise ValueError(
            "evaluate: an exported file has no data of its own: give images and annotations"
        )
    model = ExportedModel(path, torch.get_num_threads())
    about = model.about
    data = DataConfig(eval_short_side=about["short_side"], eval_max_side=about["max_side"])
    data = replace(data, exif=about["exif"], sample_range=about["sample_range"])
    if "tile" in about:  # not in older files
        data = replace(data, tile=about["tile"], tile_overlap=about["overlap"])
    tiles = tiles_for(data, tile, overlap)
    dataset = _prepared(data, images, annotations)
    _require_classes(dataset, about["class_names"])
    with progress("evaluating") as advance:
        return predict_dataset(
            model,
            dataset,
            device=model.device,
            batch_size=batch_size,
            workers=workers,
            progress=advance,
            tiles=tiles,
        )


def _prepared(
    data: DataConfig, images: PathLike, annotations: PathLike, limit: int | None = None
) -> CocoDataset:
    return CocoDataset(
        Path(images),
        Path(annotations),
        evaluation_transform(data),
        limit,
        masks=False,
        exif=data.exif,
        sample_range=data.sample_range,
    )


def _require_classes(dataset: CocoDataset, class_names: Sequence[str]) -> None:
    if dataset.class_names != list(class_names):
        raise ValueError(
            f"{dataset.annotations}: its {counted(len(dataset.class_names), 'category', 'categories')} "
            f"({_brief(dataset.class_names)}) are not the "
            f"{len(class_names)} that the checkpoint was trained on "
            f"({_brief(class_names)})"
        )


def _brief(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def scoring(predictor: Predictor, score: ScoreMode | None) -> Iterator[ScoreMode]:
    """Inside, the model scores in that way (by default in its own); yields the name of the way."""
    own = predictor.model.config
    predictor.model.config = replace(own, score=score or own.score)
    try:
        yield predictor.model.config.score
    finally:
        predictor.model.config = own


def photos_of(
    predictor: Predictor, folder: PathLike | None
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Photos, and their sizes, as an exported file takes them: at most PHOTOS of a folder, spread
    over it, or of the validation images of the model's own run; None if there are none of either.

    Raises ValueError or FileNotFoundError if a folder is given and has no images.
    """
    own = predictor.config.data.val_images
    if folder is None and own is not None and own.is_dir():
        folder = own
    if folder is None:
        return None
    files = find_images([Path(folder)], Path(), recursive=True, command="export").files
    count = min(PHOTOS, len(files))
    photos = []
    for number in range(count):
        batch = predictor.batch_of(files[number * len(files) // count].path)
        photos.append(inputs_of(batch.to(predictor.model.device)))
    return photos
