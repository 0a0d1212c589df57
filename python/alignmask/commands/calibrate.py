"""`alignmask calibrate`: the IoU to expect of a score, and a threshold with a guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import alignmask
from alignmask._printing import console
from alignmask.commands._console import choose_device, progress
from alignmask.commands._options import TILE, File, Flag, Folder, flowing
from alignmask.config import FEWEST, CalibrationMethod, Suppression, TileChoice


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask calibrate", args=arguments)


@flowing
def command(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT|RESULTS")],
    annotations: Annotated[Path | None, File] = None,
    images: Annotated[Path | None, Folder] = None,
    method: CalibrationMethod = "isotonic",
    precision: Annotated[
        float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")
    ] = None,
    iou: float = 0.75,
    confidence: float = 0.95,
    per_class: Flag = False,
    fewest: int = FEWEST,
    suppression: Suppression = "off",
    tile: Annotated[TileChoice, TILE] = "auto",
    overlap: float | None = None,
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
    expected IoU, beside the score, and `alignmask predict --threshold best-f1` keeps those from
    the best threshold of each class on. With --precision it also looks for the lowest score from
    which on so large a share of the predictions is good, with a guarantee; then `alignmask predict
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
        suppression: What is done to second masks of one object before anything is fitted: off
            leaves them, hard removes them, soft lowers their scores. Quality, thresholds and
            guarantees are of predictions with the same suppression.
        tile: Predict in tiles of this side, in pixels, or images as a whole; auto: as the model was
            made (data.tile). Quality, thresholds and guarantees are of predictions in the same
            tiles.
        overlap: Least share of a side that neighbouring tiles have in common. By default it is the
            model's own (data.tile_overlap).
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
    from alignmask._calibrating import is_results_file

    if is_results_file(model):
        if annotations is None or images is not None:
            raise ValueError("calibrate RESULTS: give --annotations FILE, and no --images")
    elif (annotations is None) != (images is None):
        raise ValueError(
            "calibrate CHECKPOINT: give --images and --annotations, or neither of them"
        )
    report = alignmask.calibrate(
        model,
        annotations=annotations,
        images=images,
        method=method,
        precision=precision,
        iou=iou,
        confidence=confidence,
        per_class=per_class,
        fewest=fewest,
        suppression=suppression,
        tile=tile,
        overlap=overlap,
        seed=seed,
        resamples=resamples,
        out=out,
        diagram=diagram,
        device=choose_device(device),
        batch_size=batch_size,
        workers=workers,
        ignore_unknown=ignore_unknown,
        progress=progress,
    )
    console().print(report.table())
    for sentence in report.sentences():
        print(sentence)
    if report.file is not None:
        print(f"calibration: {report.file}")
    if diagram is not None:
        print(f"reliability: {diagram}")
    return 0
