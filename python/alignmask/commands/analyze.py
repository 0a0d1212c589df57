"""`alignmask analyze`: how well scores follow mask quality, of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

import alignmask
from alignmask._extras import require_analyze
from alignmask.analysis.compare import comparison_table, slug, unique_names, write_analysis
from alignmask.analysis.measure import analyse_model
from alignmask.checkpoint import load_config, resolve
from alignmask.commands._console import choose_device, progress
from alignmask.commands.evaluate import File, Flag, Folder, evaluation_dataset
from alignmask.config import DataConfig, ScoreMode
from alignmask.data import CocoDataset, val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.evaluation.results_file import load_ground_truth, load_results
from alignmask.pretrained.read import MASK2FORMER_SUFFIXES

WEIGHTS = (".safetensors", *MASK2FORMER_SUFFIXES)
"""Suffixes; only the first can be a checkpoint's, the others are refused as such."""


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
    require_analyze("alignmask analyze")  # before the long work
    if not 0 < fraction <= 1:
        raise ValueError(f"analyze: --fraction: expected more than 0 and at most 1, got {fraction:g}")
    if inversions < 0:
        raise ValueError(f"analyze: --inversions: expected 0 or more, got {inversions}")
    if not models:
        raise ValueError("analyze: name at least one checkpoint or results file")
    for path in models:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    names = unique_names(models)
    dataset = _dataset(models, annotations, images)
    if dataset is not None:
        ground_truth = load_ground_truth(dataset.annotations).subset(dataset.image_ids)
    else:
        assert annotations is not None  # or _dataset would have complained
        ground_truth = load_ground_truth(annotations)
    analyses = []
    for number, (path, name) in enumerate(zip(models, names, strict=True), 1):
        if _is_checkpoint(path):
            assert dataset is not None
            folder = out / "predictions" / f"{number}_{slug(name)}"
            name += f" ({_predict(path, dataset, folder, score, device, batch_size, workers)})"
            results = load_results(folder / "results.json", ground_truth)
        else:
            results = load_results(path, ground_truth, ignore_unknown)
        analyses.append(analyse_model(name, ground_truth, results, inversions=inversions))
    Console().print(comparison_table(analyses))
    with progress("writing the page") as advance:
        files = write_analysis(analyses, ground_truth, dataset, out, fraction=fraction, progress=advance)
    for what, file in files.items():
        print(f"{what}: {file}")
    return 0


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() or path.suffix in WEIGHTS


def _dataset(models: Sequence[Path], annotations: Path | None, images: Path | None) -> CocoDataset | None:
    """The data that all models are measured on; None: that of an annotation file without its images.

    Raises ValueError if it is not clear which data is meant.
    """
    checkpoints = [path for path in models if _is_checkpoint(path)]
    if annotations is not None:
        if images is None and checkpoints:
            raise ValueError(f"analyze: {checkpoints[0]} is to predict on {annotations}: give --images DIR, too")
        return None if images is None else CocoDataset(images, annotations, masks=False)
    if images is not None or len(checkpoints) < len(models):
        raise ValueError("analyze: give --annotations FILE (only checkpoints alone have data of their own)")
    configs = [load_config(resolve(path)).data for path in checkpoints]
    for path, data in zip(checkpoints, configs, strict=True):
        if _val(data) != _val(configs[0]):
            raise ValueError(
                f"analyze: {checkpoints[0]} and {path} have different validation data: give --annotations FILE and "
                "--images DIR"
            )
    return val_dataset(configs[0], masks=False)


def _val(data: DataConfig) -> tuple[object, ...]:
    return data.val_images, data.val_annotations, data.val_limit, data.shapes


def _predict(
    checkpoint: Path,
    dataset: CocoDataset,
    out: Path,
    score: ScoreMode | Literal["default"],
    device: str,
    batch_size: int,
    workers: int,
) -> str:
    """Writes the checkpoint's results.json for that data; returns how it scored."""
    predictor = alignmask.load(checkpoint, device=choose_device(device))
    if score != "default":
        predictor.model.config = replace(predictor.model.config, score=score)
    prepared = evaluation_dataset(predictor, dataset.images, dataset.annotations, limit=len(dataset))
    with progress(f"predicting with {checkpoint}") as advance:
        evaluate_model(
            predictor.model, prepared, device=predictor.model.device, batch_size=batch_size, workers=workers, out=out,
            progress=advance,
        )  # fmt: skip
    return predictor.model.config.score
