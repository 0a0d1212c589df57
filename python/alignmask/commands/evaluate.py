"""`alignmask eval`: the metrics of a checkpoint, or of any model's results file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import alignmask
from alignmask._printing import console
from alignmask.commands._console import choose_device, progress
from alignmask.commands._options import TILE, File, Flag, Folder, check_measuring, flowing
from alignmask.config import DUPLICATE_IOU, OFFICIAL_LIMIT, Suppression, TileChoice


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask eval", args=arguments)


@flowing
def command(
    checkpoint: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[CHECKPOINT]", help_behavior_hint=""),
    ] = None,
    results: Annotated[Path | None, File] = None,
    annotations: Annotated[Path | None, File] = None,
    data_images: Annotated[Path | None, Folder] = None,
    out: Annotated[Path | None, Folder] = None,
    device: str = "auto",
    batch_size: int = 1,
    workers: int = 2,
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco",
    per_class: Literal["auto", "on", "off"] = "auto",
    ignore_unknown: Flag = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    tile: Annotated[TileChoice, TILE] = "auto",
    overlap: float | None = None,
    max_detections: int = OFFICIAL_LIMIT,
    errors: Flag = False,
    intervals: Flag = False,
) -> int:
    """Measure COCO mask AP and alignment statistics (Table 2 of the paper).

    A checkpoint, on its own validation data: alignmask eval CHECKPOINT

    A checkpoint, on other data: alignmask eval CHECKPOINT --data-images DIR --annotations FILE

    An exported file: alignmask eval model.onnx --data-images DIR --annotations FILE

    Any model's results file: alignmask eval --results FILE --annotations FILE

    Args:
        checkpoint: A checkpoint, a run's folder (its best checkpoint is used), or an exported file,
            .onnx or .pt2, which runs where it was exported for.
        results: COCO results file: a JSON list with image_id, category_id, segmentation, score.
        annotations: COCO annotation file, or a folder of YOLO labels.
        data_images: Folder of the images that the annotation file lists.
        out: Folder to write evaluation.json, per_class.csv and confusion.png to, and a checkpoint's
            predictions as results.json.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto chooses a GPU if there is one.
        batch_size: Images per forward pass.
        workers: Number of data-loading processes.
        engine: What computes AP: pycocotools is the official tool; hotcoco gives the same numbers
            faster.
        per_class: Whether a line for each class is printed; auto prints them for at most 20
            classes.
        ignore_unknown: Leave out results that have no score, or whose image or category is unknown,
            instead of refusing the file.
        suppression: What happens to second masks of one object, before anything is measured: off
            leaves them, hard removes them, soft lowers their scores.
        suppression_iou: Of two predictions of a class that overlap by more than this IoU, the
            worse-scored is such a mask.
        tile: Predict in tiles of this side, in pixels, or images as a whole. auto: as the model was
            made (data.tile). Tiles are for large images, small objects, or more instances than
            the model has queries. --batch-size counts tiles then.
        overlap: Least share of a side that neighbouring tiles have in common. By default it is the
            model's own (data.tile_overlap).
        max_detections: Predictions of a class that count in an image for AP, the best-scored ones.
            Only with 100 is AP the official one; more objects than that need more.
        errors: Also print how much AP each kind of error costs: wrong classes, poor masks, second
            masks, predictions on the background, missed objects.
        intervals: Also print how certain AP is: its 95 % interval over images, by a bootstrap.
    """
    check_measuring("eval", suppression_iou, max_detections)
    if (checkpoint is None) == (results is None):
        raise ValueError("eval: give either a CHECKPOINT or --results FILE")
    if results is not None:
        if annotations is None or data_images is not None:
            raise ValueError("eval --results FILE: give --annotations FILE, and no --data-images")
    elif (annotations is None) != (data_images is None):
        raise ValueError(
            "eval CHECKPOINT: give --data-images and --annotations, or neither of them"
        )
    measured: Any = results
    if checkpoint is not None:
        from alignmask.exporting.files import is_exported

        exported = is_exported(checkpoint)
        measured = checkpoint if exported else alignmask.load(checkpoint, choose_device(device))
    evaluation = alignmask.evaluate(
        measured,
        annotations=annotations,
        images=data_images,
        out=out,
        batch_size=batch_size,
        workers=workers,
        engine=engine,
        ignore_unknown=ignore_unknown,
        suppression=suppression,
        suppression_iou=suppression_iou,
        tile=tile,
        overlap=overlap,
        max_detections=max_detections,
        errors=errors,
        intervals=intervals,
        progress=progress,
    )
    shown = {"auto": None, "on": True, "off": False}
    console().print(evaluation.table(shown[per_class]))
    return 0
