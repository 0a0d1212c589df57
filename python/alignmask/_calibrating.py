"""What `alignmask.calibrate` is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignmask import checkpoint as checkpoints
from alignmask._arguments import (
    Device,
    PathLike,
    Progress,
    are_results,
    as_predictor,
    evaluation_data,
    quiet,
)
from alignmask.config import FEWEST, CalibrationMethod, Suppression, TileChoice
from alignmask.evaluation.calibrate import Report, check_iou
from alignmask.evaluation.calibrate import calibrate as fit_and_report
from alignmask.evaluation.calibrators import check_replaceable, write_calibration
from alignmask.evaluation.matches import ANY_OVERLAP
from alignmask.evaluation.predictions import predict_dataset
from alignmask.evaluation.results_file import Results, load_ground_truth, load_results
from alignmask.model.tiles import tiles_for
from alignmask.pictures.files import check_figure
from alignmask.pictures.reliability import MAKER, groups, reliability_diagram
from alignmask.predictor import Predictor


def calibrate(
    model_or_results: PathLike | Predictor | Sequence[dict[str, Any]] | Results,
    *,
    annotations: PathLike | None = None,
    images: PathLike | None = None,
    method: CalibrationMethod = "isotonic",
    precision: float | None = None,
    iou: float = 0.75,
    confidence: float = 0.95,
    per_class: bool = False,
    fewest: int = FEWEST,
    suppression: Suppression = "off",
    tile: TileChoice = "auto",
    overlap: float | None = None,
    seed: int = 0,
    resamples: int = 500,
    out: PathLike | None = None,
    diagram: PathLike | None = None,
    device: Device = "cpu",
    batch_size: int = 1,
    workers: int = 2,
    ignore_unknown: bool = False,
    progress: Progress = quiet,
) -> Report:
    """Find out which mask IoU to expect of a score, from which score on predictions are best kept,
    and which ones can be trusted.

    The calibration is fitted on one half of the images; the other half shows what it brings.

    Args:
        model_or_results: A run's folder or a checkpoint, a loaded model, or COCO results (a JSON
            file, or its entries).
        annotations: The COCO annotation file to compare with. Results need it; a model is otherwise
            calibrated on the validation data of its own run.
        images: Folder of the images that `annotations` lists. Only a model needs it.
        method: How scores become the expected IoU: "isotonic" (any non-decreasing function),
            "linear", "platt" or "temperature".
        precision: Ask for a guarantee that at least this share of the trusted predictions is good;
            between 0 and 1.
        iou: A prediction is good if its mask has this IoU with an object of its class that no
            better one has found.
        confidence: The guarantee holds with this probability over the choice of the images.
        per_class: Look for a guarantee for every class by itself.
        fewest: Classes with fewer predictions to fit on share one map.
        suppression: What is done to second masks of one object before anything is fitted. Quality,
            thresholds and guarantees are then of predictions with the same suppression.
        tile: How a model takes images, as in `evaluate`: side of the tiles in pixels, "whole", or
            "auto". Quality, thresholds and guarantees are then of predictions in the same tiles.
        overlap: As in `evaluate`.
        seed: Seed of the split into halves and of the bootstrap.
        resamples: Number of bootstrap resamples for the intervals; 0 for none.
        out: File to write the calibration to; by default calibration.json of the checkpoint. Of
            results, and of a loaded model, nothing is written by default.
        diagram: PNG file to draw reliability diagrams to, of the half that was held out.
        device: Where a checkpoint is loaded to. A loaded model stays where it is.
        batch_size: Images per forward pass; tiles, where the model takes images in tiles.
        workers: Data-loading processes; 0 loads in this process.
        ignore_unknown: Leave out results that fit no image or category or have no score, instead of
            refusing the file.
        progress: Shows how far predicting is.

    Returns:
        The calibration and what it brings: `calibration`, `table()`, `sentences()`. A loaded model
        has the calibration from then on, and so has a checkpoint that is loaded anew.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A file is damaged or is not to be overwritten, there are fewer than 2 images or
            no predictions, or an argument is out of range.

    Example:
        >>> report = alignmask.calibrate("runs/shapes", workers=0, resamples=20)
        >>> report.file.name
        'calibration.json'
        >>> found = alignmask.load("runs/shapes").predict("photo.jpg")
        >>> found.quality.shape == found.scores.shape
        True
    """
    for name, share in (("precision", precision), ("confidence", confidence)):
        if share is not None and not 0 < share < 1:
            raise ValueError(
                f"calibrate: {name}: expected more than 0 and less than 1, got {share:g}"
            )
    check_iou(iou)  # before the long work
    if resamples < 0 or fewest < 1:
        raise ValueError("calibrate: expected resamples of 0 or more and fewest of 1 or more")
    path = None if out is None else Path(out)
    if diagram is not None:
        check_figure(Path(diagram), MAKER)
    score, predictor, tiles = "file", None, None
    if is_results_file(model_or_results):
        if tile != "auto" or overlap is not None:
            raise ValueError("calibrate: tiles are for a model to predict on: give results without")
        if annotations is None or images is not None:
            raise ValueError("calibrate: of results, give annotations, and no images")
        ground_truth = load_ground_truth(str(annotations))
        given = model_or_results
        results = load_results(
            Path(given) if isinstance(given, (str, Path)) else given,  # type: ignore[arg-type]
            ground_truth,
            ignore_unknown,
        )
    else:
        if not isinstance(model_or_results, Predictor) and path is None:
            path = checkpoints.resolve(Path(str(model_or_results))) / checkpoints.CALIBRATION
        if path is not None:
            check_replaceable(path)  # before the long work
        predictor = as_predictor(model_or_results, device)
        score = predictor.model.config.score
        tiles = tiles_for(predictor.config.data, tile, overlap)
        dataset = evaluation_data(predictor, images, annotations)
        with progress("predicting") as advance:
            entries = predict_dataset(
                predictor.model, dataset, device=predictor.model.device, batch_size=batch_size, workers=workers,
                progress=advance, tiles=tiles,
            )  # fmt: skip
        ground_truth = load_ground_truth(dataset.annotations, dataset.images).subset(
            dataset.image_ids
        )
        results = load_results(entries, ground_truth)
    report = fit_and_report(
        ground_truth, results, method, precision=precision, iou=iou, confidence=confidence, per_class=per_class,
        fewest=fewest, seed=seed, resamples=resamples, score=score, suppression=suppression,
        tile=None if tiles is None else tiles.side,
    )  # fmt: skip
    if path is not None:
        write_calibration(path, report.calibration)
        report = replace(report, file=path)
    if predictor is not None:
        predictor.calibration = report.calibration
    if diagram is not None:
        held_out = groups(report.held_out[ANY_OVERLAP], report.categories, classes=True, sizes=True)
        reliability_diagram(held_out, Path(diagram))
    return report


def is_results_file(given: Any) -> bool:
    """Whether it is results; a checkpoint may be named by one of its JSON files."""
    if isinstance(given, Predictor):
        return False
    own = (checkpoints.CONFIG, checkpoints.META)
    return are_results(given) and not (isinstance(given, (str, Path)) and Path(given).name in own)
