"""What `alignmask.train`, `evaluate`, `analyze` and `draw` are: each joins several rooms
of the package."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from PIL import Image

from alignmask._arguments import (
    Device,
    PathLike,
    Progress,
    are_results,
    as_predictor,
    common_data,
    evaluation_data,
    named_models,
    quiet,
    results_of_exported,
    scoring,
)
from alignmask._extras import require_analyze
from alignmask._files import must_be_ours, write_json
from alignmask.analysis.compare import NUMBERS, PAGE, SCATTERS, slug, write_analysis
from alignmask.analysis.differences import with_differences
from alignmask.analysis.measure import ModelAnalysis, analyze_model
from alignmask.config import (
    DUPLICATE_IOU,
    OFFICIAL_LIMIT,
    RESAMPLES,
    SHOWN_SCORE,
    Colours,
    Config,
    ScoreMode,
    Suppression,
    TileChoice,
)
from alignmask.data.images import ImageLike, to_pixels
from alignmask.evaluation.duplicates import suppress_duplicates
from alignmask.evaluation.evaluate import Evaluation, evaluate_file, evaluate_model
from alignmask.evaluation.metrics import Engine, check_limit
from alignmask.evaluation.per_class import FILE as PER_CLASS_FILE
from alignmask.evaluation.per_class import check_csv, write_csv
from alignmask.evaluation.predictions import predict_dataset
from alignmask.evaluation.results_file import Results, load_ground_truth, load_results
from alignmask.exporting.files import is_exported
from alignmask.model import Instances
from alignmask.model.tiles import tiles_for
from alignmask.pictures.confusion import FILE as CONFUSION_FILE
from alignmask.pictures.confusion import MAKER, confusion_picture
from alignmask.pictures.drawing import Drawable, draw_instances
from alignmask.pictures.files import check_figure
from alignmask.predictor import Predictor

if TYPE_CHECKING:
    from alignmask.training.callbacks import Callback


def train(config: Config, *, resume: bool = True, callbacks: Sequence[Callback] = ()) -> Path:
    """Train a model, evaluate it on the validation data now and then, and keep the best checkpoint.

    Args:
        config: All settings of the run; see `alignmask.recipes` for complete ones to start from.
        resume: Continue an existing run of the same name from its newest checkpoint. If False, an
            existing run's folder is renamed, and training starts anew.
        callbacks: Told of every iteration, evaluation and checkpoint
            (`alignmask.training.callbacks.Callback`).

    Returns:
        The run's folder, `config.out / config.name`. `alignmask.load` reads it.

    Raises:
        ValueError: Settings and data disagree, or an existing run has other settings.
        FloatingPointError: The loss is not finite; the message names the last good checkpoint.

    Example:
        >>> from dataclasses import replace
        >>> config = alignmask.recipes.shapes_tiny()
        >>> config = replace(config, name="shapes", train=replace(config.train, iterations=2))
        >>> run = alignmask.train(config)
        >>> str(run)
        'runs/shapes'
    """
    from alignmask.training.memory import with_batch_size
    from alignmask.training.sheets import Sheets
    from alignmask.training.trainer import train as train_run

    return train_run(with_batch_size(config, resume), resume, [Sheets(), *callbacks])


def evaluate(
    model_or_results: PathLike | Predictor | Sequence[dict[str, Any]] | Results,
    *,
    annotations: PathLike | None = None,
    images: PathLike | None = None,
    out: PathLike | None = None,
    device: Device = "cpu",
    batch_size: int = 1,
    workers: int = 2,
    engine: Engine = "hotcoco",
    ignore_unknown: bool = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    tile: TileChoice = "auto",
    overlap: float | None = None,
    max_detections: int = OFFICIAL_LIMIT,
    errors: bool = False,
    intervals: bool = False,
    progress: Progress = quiet,
) -> Evaluation:
    """Measure COCO mask AP and how well scores follow mask quality, of a model or of any model's
    results file.

    Args:
        model_or_results: A run's folder or a checkpoint, a loaded model, an exported file (.onnx,
            .pt2), or COCO results (a JSON file, or its entries).
        annotations: The COCO annotation file to measure against. Results and exported files need
            it; a model is otherwise evaluated on the validation data of its own run.
        images: Folder of the images that `annotations` lists. Only a model needs it.
        out: Folder to write evaluation.json, per_class.csv and confusion.png to, and a model's
            predictions as results.json; None writes nothing.
        device: Where a checkpoint is loaded to. A loaded model stays where it is.
        batch_size: Images per forward pass.
        workers: Data-loading processes; 0 loads in this process.
        engine: What computes AP: "pycocotools" is the official tool; "hotcoco" gives the same
            numbers, faster.
        ignore_unknown: Leave out results that fit no image or category or have no score, instead of
            refusing the file.
        suppression: Remove second masks of one object ("hard"), or lower their scores ("soft"),
            before anything is measured.
        suppression_iou: Of two predictions of one class whose IoU is above this, the worse-scored
            one is such a mask.
        tile: Predict in tiles of this side, in pixels, or images as a "whole"; "auto": as the
            model's settings say (`data.tile`). `batch_size` is a number of tiles, where there
            are any. Only for a model.
        overlap: Least share of a side that neighbouring tiles have in common; None: as the model's
            settings say.
        max_detections: Predictions of a class that count in an image for AP, the best-scored ones;
            at least 10. Only with 100 is AP the official one.
        errors: Also find out how much AP each kind of error costs (TIDE's split).
        intervals: Also find 95 % intervals of AP over images, by a bootstrap.
        progress: Shows how far the evaluation is.

    Returns:
        The numbers, by way of scoring; `AP` is the most important one. Numbers are fractions from 0
        to 1, or -1 where there is no ground truth. `table()` shows them in percent.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A file is damaged, the data's categories are not the model's, or it is not clear
            which data is meant.

    Example:
        >>> evaluation = alignmask.evaluate("runs/shapes", workers=0)
        >>> 0 <= evaluation.AP <= 1
        True
        >>> annotations = "shapes/instances_val.json"
        >>> again = alignmask.evaluate("runs/shapes/results.json", annotations=annotations)
        >>> again.AP == evaluation.AP
        True
    """
    check_limit(max_detections)  # before the long work
    if out is not None:
        names = ["evaluation.json", *(["results.json"] if _predicts(model_or_results) else [])]
        must_be_ours(Path(out), "evaluation.json", ("images", "modes"), names)
        check_csv(Path(out) / PER_CLASS_FILE)
        check_figure(Path(out) / CONFUSION_FILE, MAKER)
    if isinstance(model_or_results, (str, os.PathLike)) and is_exported(Path(model_or_results)):
        model_or_results = results_of_exported(
            Path(model_or_results),
            images,
            annotations,
            batch_size,
            workers,
            tile,
            overlap,
            progress,
        )
        if out is not None:
            write_json(Path(out) / "results.json", model_or_results)
        images, tile, overlap = None, "auto", None
    if not isinstance(model_or_results, Predictor) and are_results(model_or_results):
        if annotations is None:
            raise ValueError(
                "evaluate: results can be measured only against a COCO annotation file: give "
                "annotations"
            )
        if tile != "auto" or overlap is not None:
            raise ValueError("evaluate: tiles are for a model to predict on: give results without")
        if images is not None:
            raise ValueError(
                "evaluate: images are for a model to predict on: give results without them"
            )
        results = (
            str(model_or_results) if isinstance(model_or_results, os.PathLike) else model_or_results
        )
        evaluation = evaluate_file(
            str(annotations), results, engine, ignore_unknown=ignore_unknown, suppression=suppression,
            suppression_iou=suppression_iou, max_detections=max_detections, errors=errors,
            intervals=intervals,
        )  # fmt: skip
        if out is not None:
            write_json(Path(out) / "evaluation.json", evaluation.as_dict(), indent=2)
            _write_beside(evaluation, Path(out))
        return evaluation
    predictor = as_predictor(model_or_results, device)
    tiles = tiles_for(predictor.config.data, tile, overlap)
    dataset = evaluation_data(predictor, images, annotations)
    with progress("evaluating") as advance:
        evaluation = evaluate_model(
            predictor.model, dataset, device=predictor.model.device, batch_size=batch_size, workers=workers,
            out=None if out is None else Path(out), progress=advance, engine=engine,
            suppression=suppression, suppression_iou=suppression_iou, max_detections=max_detections,
            tiles=tiles, errors=errors, intervals=intervals,
        )  # fmt: skip
    if out is not None:
        _write_beside(evaluation, Path(out))
    return evaluation


def _predicts(model_or_results: Any) -> bool:
    """Whether it is a model, in any form."""
    if isinstance(model_or_results, (str, os.PathLike)) and is_exported(Path(model_or_results)):
        return True
    return isinstance(model_or_results, Predictor) or not are_results(model_or_results)


def _write_beside(evaluation: Evaluation, out: Path) -> None:
    """What is written beside evaluation.json: tables and pictures of what it has."""
    write_csv(out / PER_CLASS_FILE, evaluation.classes)
    if evaluation.confusion is not None:
        confusion_picture(evaluation.confusion, out / CONFUSION_FILE)


def analyze(
    models: Sequence[PathLike] | Mapping[str, PathLike | Predictor],
    *,
    annotations: PathLike | None = None,
    images: PathLike | None = None,
    out: PathLike = "analysis",
    fraction: float = 0.10,
    inversions: int = 8,
    score: ScoreMode | None = None,
    device: Device = "cpu",
    batch_size: int = 1,
    workers: int = 2,
    ignore_unknown: bool = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
    measured: Callable[[Sequence[ModelAnalysis]], None] | None = None,
) -> dict[str, Path]:
    """Show how well scores follow mask quality, for several models side by side: numbers, plots,
    and an interactive page.

    Args:
        models: Runs' folders, checkpoints and COCO results files, in any order. They are named by
            what their paths differ in, or by the keys of a mapping; its values may also be loaded
            models.
        annotations: The COCO annotation file to measure against; by default the validation data of
            the checkpoints.
        images: Folder of the images that `annotations` lists. Results files can do without; masks
            are then shown on grey.
        out: Folder to write to.
        fraction: Share of 100 predictions per image that is plotted, the most confident ones; more
            than 0, at most 1.
        inversions: Number of each model's worst rank inversions to show.
        score: How checkpoints score; by default as their configuration says.
        device: Where checkpoints are loaded to. Loaded models stay where they are.
        batch_size: Images per forward pass.
        workers: Data-loading processes; 0 loads in this process.
        ignore_unknown: Leave out results that fit no image or category or have no score, instead of
            refusing the file.
        suppression: As in `evaluate`, for all models alike.
        suppression_iou: As in `evaluate`.
        max_detections: As in `evaluate`, for all models alike.
        resamples: Number of bootstrap resamples of the images, for the intervals of the
            differences to the first model; 0 for none.
        progress: Shows how far predicting and writing are.
        measured: Called with what was measured before the page is written, which takes longer.

    Returns:
        The files that were written, by what they show: "page" is report.html, "numbers" is
            analysis.json.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A file is damaged, or it is not clear which data is meant.
        ImportError: The packages of the extra `[analyze]` are missing.

    Example:
        >>> models = {"mine": "runs/shapes", "best": "runs/shapes/best"}
        >>> files = alignmask.analyze(models, workers=0)
        >>> str(files["page"])
        'analysis/report.html'
    """
    require_analyze("alignmask.analyze")  # before the long work
    check_limit(max_detections)
    if not 0 < fraction <= 1:
        raise ValueError(f"analyze: fraction: expected more than 0 and at most 1, got {fraction:g}")
    if inversions < 0:
        raise ValueError(f"analyze: inversions: expected 0 or more, got {inversions}")
    if resamples < 0:
        raise ValueError(f"analyze: resamples: expected 0 or more, got {resamples}")
    named = named_models(models)
    dataset = common_data(named, annotations, images)
    ground_truth = (
        load_ground_truth(str(annotations))
        if dataset is None
        else load_ground_truth(dataset.annotations, dataset.images)
    )
    if dataset is not None:
        ground_truth = ground_truth.subset(dataset.image_ids)
    out, analyses = Path(out), []
    must_be_ours(out, NUMBERS, ("models",), (NUMBERS, PAGE, *SCATTERS.values()))
    for number, (name, model) in enumerate(named.items(), 1):
        if isinstance(model, Path) and are_results(model):
            results = load_results(model, ground_truth, ignore_unknown)
        else:
            assert dataset is not None
            predictor, folder = (
                as_predictor(model, device),
                out / "predictions" / f"{number}_{slug(name)}",
            )
            with progress(f"predicting with {name}") as advance, scoring(predictor, score) as mode:
                prepared = evaluation_data(
                    predictor, dataset.images, dataset.annotations, limit=len(dataset)
                )
                entries = predict_dataset(
                    predictor.model, prepared, device=predictor.model.device, batch_size=batch_size, workers=workers,
                    progress=advance, tiles=tiles_for(predictor.config.data),
                )  # fmt: skip
            write_json(folder / "results.json", entries)
            results = load_results(folder / "results.json", ground_truth)
            name += f" ({mode})"
        results = suppress_duplicates(results, suppression, suppression_iou)
        analyses.append(
            analyze_model(
                name, ground_truth, results, inversions=inversions, max_detections=max_detections
            )
        )
    analyses = with_differences(analyses, len(ground_truth.sizes), resamples)
    if measured is not None:
        measured(analyses)
    with progress("writing the page") as advance:
        return write_analysis(
            analyses, ground_truth, dataset, out, fraction=fraction, progress=advance
        )


def draw(
    image: ImageLike,
    instances: Instances | Drawable,
    class_names: Sequence[str] | None = None,
    *,
    threshold: float = SHOWN_SCORE,
    colours: Colours = "instance",
) -> Image.Image:
    """Draw the masks, classes and scores of instances over their image.

    Args:
        image: A path, a PIL image, a uint8 array [H, W, 3], [H, W] or [H, W, 4], or a uint8 tensor
            [3, H, W]; RGB.
        instances: What a model found in the image; masks have the image's size.
        class_names: The name of every class, by label; without them, labels are shown as numbers.
        threshold: Instances with a lower score are left out.
        colours: What colours tell apart: the instances, or the classes.

    Returns:
        The picture. A small image is enlarged by a whole factor, so that the text is readable.

    Raises:
        ImageError: The image file cannot be read.
        ValueError: The masks do not have the image's size, or a label has no name.

    Example:
        >>> predictor = alignmask.load("runs/shapes")
        >>> found = predictor.predict("photo.jpg")
        >>> picture = alignmask.draw("photo.jpg", found, predictor.class_names, threshold=0.1)
        >>> picture.size  # of a photo of 70 x 50 pixels
        (560, 400)
    """
    if colours not in get_args(Colours):
        raise ValueError(
            f"draw: colours: expected {' or '.join(get_args(Colours))}, got {colours!r}"
        )
    if class_names is None:
        class_names = [str(label) for label in range(int(max(instances.labels_N, default=-1)) + 1)]
    return draw_instances(
        to_pixels(image).permute(1, 2, 0).numpy(),
        instances,
        class_names,
        threshold=threshold,
        colours=colours,
    )
