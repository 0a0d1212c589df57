"""`alignmask calibrate`: the IoU to expect of a score, and a threshold with a guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import alignmask
from alignmask import checkpoint as checkpoints
from alignmask._arguments import evaluation_data
from alignmask._printing import console
from alignmask.commands._console import choose_device, progress
from alignmask.commands._options import File, Flag, Folder, flowing
from alignmask.evaluation.calibrate import calibrate
from alignmask.evaluation.calibrators import FEWEST, Method, check_replaceable, write_calibration
from alignmask.evaluation.matches import ANY_OVERLAP
from alignmask.evaluation.predictions import predict_dataset
from alignmask.evaluation.results_file import GroundTruth, Results, load_ground_truth, load_results
from alignmask.pictures.reliability import groups, reliability_diagram


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask calibrate", args=arguments)


@flowing
def command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|RESULTS")],
    annotations: Annotated[Path | None, File] = None,
    images: Annotated[Path | None, Folder] = None,
    method: Method = "isotonic",
    precision: Annotated[
        float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")
    ] = None,
    iou: float = 0.75,
    confidence: float = 0.95,
    per_class: Flag = False,
    fewest: int = FEWEST,
    seed: int = 0,
    resamples: int = 500,
    out: Annotated[Path | None, File] = None,
    diagram: Annotated[Path | None, File] = None,
    device: str = "auto",
    batch_size: int = 1,
    workers: int = 2,
    ignore_unknown: Flag = False,
) -> int:
    """Find out which mask IoU to expect of a score, and which scores can be trusted.

    A checkpoint, on its own validation data: alignmask calibrate CHECKPOINT

    On other data: alignmask calibrate CHECKPOINT --images DIR --annotations FILE

    Any model's results file: alignmask calibrate RESULTS --annotations FILE

    The calibration is fitted on one half of the images and shown on the other half. It is stored
    beside the checkpoint as calibration.json: from then on, predictions have `quality`, the
    expected IoU, beside the score. With --precision it also looks for the lowest score from which
    on so large a share of the predictions is good, with a guarantee; then `alignmask predict
    --trusted` keeps only those.

    Args:
        model: A checkpoint or a run's folder (its best checkpoint is used), or a COCO results file
            (JSON).
        annotations: COCO annotation file; by default that of the checkpoint's own validation data.
        images: Folder of the images that the annotation file lists, for a checkpoint.
        method: How scores become the expected IoU: isotonic (any non-decreasing function), linear,
            platt or temperature.
        precision: Ask for a guarantee that at least this share of the trusted predictions is good,
            e.g. 0.9.
        iou: A prediction is good if its mask has this IoU with an object of its class that no
            better one has found.
        confidence: The guarantee holds with this probability over the choice of the images.
        per_class: Look for a guarantee for every class by itself.
        fewest: Classes with fewer predictions to fit on share one calibration.
        seed: Seed of the split into halves and of the bootstrap.
        resamples: Number of bootstrap resamples of the images for the intervals; 0 for none.
        out: File to write the calibration to; by default calibration.json of the checkpoint. Of a
            results file nothing is written by default.
        diagram: PNG file to draw reliability diagrams to, of the half that was held out: all
            predictions, by size, and by class.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto chooses a GPU if there is one.
        batch_size: Images per forward pass.
        workers: Number of data-loading processes.
        ignore_unknown: Leave out results that have no score, or whose image or category is unknown,
            instead of refusing the file.
    """
    for name, share in (
        ("--precision", 0.5 if precision is None else precision),
        ("--confidence", confidence),
    ):
        if not 0 < share < 1:
            raise ValueError(
                f"calibrate: {name}: expected more than 0 and less than 1, got {share:g}"
            )
    if not 0 < iou <= 1:
        raise ValueError(f"calibrate: --iou: expected more than 0 and at most 1, got {iou:g}")
    if resamples < 0 or fewest < 1:
        raise ValueError("calibrate: expected --resamples of 0 or more and --fewest of 1 or more")
    score = "file"
    if (
        model.is_file()
        and model.suffix == ".json"
        and model.name not in (checkpoints.CONFIG, checkpoints.META)
    ):
        if annotations is None or images is not None:
            raise ValueError("calibrate RESULTS: give --annotations FILE, and no --images")
        ground_truth = load_ground_truth(annotations)
        results = load_results(model, ground_truth, ignore_unknown)
    else:
        if (annotations is None) != (images is None):
            raise ValueError(
                "calibrate CHECKPOINT: give --images and --annotations, or neither of them"
            )
        folder = checkpoints.resolve(model)
        out = out or folder / checkpoints.CALIBRATION
        check_replaceable(out)  # before the long work
        ground_truth, results, score = _predict(
            folder, annotations, images, device, batch_size, workers
        )
    report = calibrate(
        ground_truth, results, method, precision=precision, iou=iou, confidence=confidence, per_class=per_class,
        fewest=fewest, seed=seed, resamples=resamples, score=score,
    )  # fmt: skip
    console().print(report.table())
    for guarantee in report.calibration.guarantees:
        category_id = guarantee.category_id
        print(
            guarantee.describe(
                None if category_id is None else ground_truth.categories[category_id]
            )
        )
    if out is not None:
        write_calibration(out, report.calibration)
        print(f"calibration: {out}")
    if diagram is not None:
        held_out = groups(
            report.held_out[ANY_OVERLAP], ground_truth.categories, classes=True, sizes=True
        )
        reliability_diagram(held_out, diagram)
        print(f"reliability: {diagram}")
    return 0


def _predict(
    folder: Path,
    annotations: Path | None,
    images: Path | None,
    device: str,
    batch_size: int,
    workers: int,
) -> tuple[GroundTruth, Results, str]:
    """Ground truth, predictions, and how the model scores."""
    predictor = alignmask.load(folder, device=choose_device(device))
    dataset = evaluation_data(predictor, images, annotations)
    with progress("predicting") as advance:
        entries = predict_dataset(
            predictor.model, dataset, device=predictor.model.device, batch_size=batch_size, workers=workers,
            progress=advance,
        )  # fmt: skip
    ground_truth = load_ground_truth(dataset.annotations).subset(dataset.image_ids)
    return ground_truth, load_results(entries, ground_truth), predictor.config.model.score
