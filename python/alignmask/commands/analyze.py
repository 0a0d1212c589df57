"""`alignmask analyze`: how well scores follow mask quality, of several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

import alignmask
from alignmask.analysis.compare import analysis_table
from alignmask.commands._console import choose_device, progress
from alignmask.commands._options import File, Flag, Folder
from alignmask.config import ScoreMode


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask analyze", args=arguments)


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
) -> int:
    """How well scores follow mask quality (Table 2, Fig. 1 and 4 of the paper), of several models side by side.

    Of checkpoints, on their own validation data: alignmask analyze runs/a runs/b

    Of any models' results files, and checkpoints: alignmask analyze runs/a results.json --annotations FILE --images DIR

    Writes report.html, a page that needs no network: sortable tables, plots in which a click on a point shows that
    prediction on its image, filters by class, size and IoU. And analysis.json, pictures of the plots and of the worst
    rank inversions, and of checkpoints the predictions as COCO results files.

    Args:
        models: Checkpoints or runs' folders (then their best one), and COCO results files (JSON), in any order.
        annotations: COCO annotation file; without it, that of the first checkpoint's validation data.
        images: Folder of the images that it lists. Results files do without: then masks are shown on grey.
        out: Folder to write to.
        fraction: Plotted predictions: 0.1 shows the most confident 10 % of 100 per image.
        inversions: So many of each model's worst rank inversions are shown.
        score: How checkpoints score: by one of these (see --model.score of `train`), or as their configuration says.
        device: Where models run: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        batch_size: Images per forward pass.
        workers: Data-loading processes.
        ignore_unknown: Leave out results that fit no image or category or have no score, instead of refusing the file.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"analyze: --fraction: expected more than 0 and at most 1, got {fraction:g}")
    if inversions < 0:
        raise ValueError(f"analyze: --inversions: expected 0 or more, got {inversions}")
    if annotations is None and images is not None:
        raise ValueError("analyze: --images: give --annotations FILE, which lists them, too")
    files = alignmask.analyze(
        models,
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
        progress=progress,
        measured=lambda analyses: Console().print(analysis_table(analyses)),
    )
    for what, file in files.items():
        print(f"{what}: {file}")
    return 0
