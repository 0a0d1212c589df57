"""`alignmask analyze`: how well scores follow mask quality, for several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

import alignmask
from alignmask._extras import require_analyze
from alignmask._printing import console
from alignmask.commands._console import choose_device, progress
from alignmask.commands._options import File, Flag, Folder, check_measuring, flowing
from alignmask.config import DUPLICATE_IOU, OFFICIAL_LIMIT, RESAMPLES, ScoreMode, Suppression


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask analyze", args=arguments)


@flowing
def command(
    models: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CHECKPOINT|RESULTS ...", help_behavior_hint="(required)"),
    ],
    annotations: Annotated[Path | None, File] = None,
    images: Annotated[Path | None, Folder] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("analysis"),
    fraction: float = 0.10,
    inversions: int = 8,
    score: ScoreMode | Literal["default"] = "default",
    device: str = "auto",
    batch_size: int = 1,
    workers: int = 2,
    ignore_unknown: Flag = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
    resamples: int = RESAMPLES,
    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (),
) -> int:
    """Show how well scores follow mask quality (Table 2, Fig. 1 and 4 of the paper), for several
    models side by side.

    Checkpoints, on their own validation data: alignmask analyze runs/a runs/b

    Any models' results files, and checkpoints: alignmask analyze runs/a results.json --annotations
    FILE --images DIR

    The command writes report.html, a page that needs no network: it has sortable tables, plots in
    which a click on a point shows that prediction on its image, and filters by class, size and IoU.
    It also writes analysis.json, pictures of the plots and of the worst rank inversions, and the
    predictions of checkpoints as COCO results files.

    Args:
        models: Checkpoints or runs' folders (their best checkpoint is used), and COCO results files
            (JSON), in any order.
        annotations: COCO annotation file; by default that of the checkpoints' own validation data.
        images: Folder of the images that the annotation file lists. Without it, masks of results
            files are shown on grey.
        out: Folder to write to.
        fraction: How much to plot: 0.1 plots the most confident 10 predictions per image on
            average, 1 plots 100.
        inversions: Number of each model's worst rank inversions to show.
        score: How checkpoints score their predictions (see --model.score of `train`); default: as
            they were configured.
        device: Where models run: cpu, cuda, cuda:1, ...; auto chooses a GPU if there is one.
        batch_size: Images per forward pass.
        workers: Number of data-loading processes.
        ignore_unknown: Leave out results that have no score, or whose image or category is unknown,
            instead of refusing the file.
        suppression: What happens to second masks of one object, before anything is measured: off
            leaves them, hard removes them, soft lowers their scores.
        suppression_iou: Of two predictions of a class that overlap by more than this IoU, the
            worse-scored is such a mask.
        max_detections: Predictions of a class that count in an image for AP, the best-scored ones.
            Only with 100 is AP the official one; more objects than that need more.
        resamples: Number of bootstrap resamples of the images, for the intervals of the differences
            to the first model; 0 for none.
        names: A name for each model, in their order; by default what their paths differ in.
    """
    require_analyze("alignmask analyze")
    check_measuring("analyze", suppression_iou, max_detections)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"analyze: --fraction: expected more than 0 and at most 1, got {fraction:g}"
        )
    if inversions < 0:
        raise ValueError(f"analyze: --inversions: expected 0 or more, got {inversions}")
    if resamples < 0:
        raise ValueError(f"analyze: --resamples: expected 0 or more, got {resamples}")
    if names and len(set(names)) != len(models):
        raise ValueError(
            f"analyze: --names: expected {len(models)} different names, one for each model, got "
            f"{', '.join(names)}"
        )
    from alignmask._arguments import are_results
    from alignmask.analysis.compare import analysis_table

    results = [path for path in models if are_results(path)]
    if annotations is None and (images is not None or results):
        raise ValueError(
            "analyze: give --annotations FILE (only checkpoints have validation data of their own)"
        )
    if annotations is not None and images is None and len(results) < len(models):
        raise ValueError(
            f"analyze: checkpoints are to predict on the images of {annotations}: give --images "
            "DIR, too"
        )
    files = alignmask.analyze(
        dict(zip(names, models, strict=True)) if names else models,
        annotations=annotations,
        images=images,
        out=out,
        fraction=fraction,
        inversions=inversions,
        score=None if score == "default" else score,
        device=choose_device(device),
        batch_size=batch_size,
        workers=workers,
        ignore_unknown=ignore_unknown,
        suppression=suppression,
        suppression_iou=suppression_iou,
        max_detections=max_detections,
        resamples=resamples,
        progress=progress,
        measured=lambda analyses: console().print(analysis_table(analyses)),
    )
    for what, file in files.items():
        print(f"{what}: {file}")
    return 0
