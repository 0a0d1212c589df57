"""`alignmask eval`: of a checkpoint, or of any model's results file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

import alignmask
from alignmask._files import write_json
from alignmask.commands._console import choose_device, progress
from alignmask.data import CocoDataset, evaluation_transform, val_dataset
from alignmask.evaluation.evaluate import Evaluation, evaluate_file, evaluate_model
from alignmask.predictor import Predictor

File = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
Folder = tyro.conf.arg(metavar="DIR", help_behavior_hint="")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask eval", args=arguments)


def command(
    checkpoint: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]", help_behavior_hint="")
    ] = None,
    results: Annotated[Path | None, File] = None,
    annotations: Annotated[Path | None, File] = None,
    data_images: Annotated[Path | None, Folder] = None,
    out: Annotated[Path | None, Folder] = None,
    device: str = "auto",
    batch_size: int = 1,
    workers: int = 2,
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco",
    per_category: Flag = False,
    ignore_unknown: Flag = False,
) -> int:
    """COCO mask AP and alignment statistics (Table 2 of the paper).

    Of a checkpoint, on its own validation data: alignmask eval CHECKPOINT

    On other data: alignmask eval CHECKPOINT --data-images DIR --annotations FILE

    Of any model's results file: alignmask eval --results FILE --annotations FILE

    Args:
        checkpoint: A checkpoint, or a run's folder (then its best one).
        results: COCO results file: a JSON list with image_id, category_id, segmentation, score.
        annotations: COCO annotation file.
        data_images: Folder of the images that the annotation file lists.
        out: Folder to write evaluation.json to, and of a checkpoint results.json.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        batch_size: Images per forward pass.
        workers: Data-loading processes.
        engine: What computes AP. pycocotools is the official tool; hotcoco gives the same numbers, faster.
        per_category: Print the AP of every category, too.
        ignore_unknown: Leave out results that fit no image or category or have no score, instead of refusing the file.
    """
    if (checkpoint is None) == (results is None):
        raise ValueError("eval: give either a CHECKPOINT or --results FILE")
    if results is not None:
        if annotations is None or data_images is not None:
            raise ValueError("eval --results FILE: give --annotations FILE, and no --data-images")
        evaluation = evaluate_file(annotations, results, engine, ignore_unknown=ignore_unknown)
        if out is not None:
            write_json(out / "evaluation.json", evaluation.as_dict(), indent=2)
    else:
        assert checkpoint is not None
        predictor = alignmask.load(checkpoint, device=choose_device(device))
        evaluation = _evaluate(
            predictor, _dataset(predictor, data_images, annotations), batch_size, workers, out, engine
        )
    console = Console()
    console.print(evaluation.table())
    if per_category:
        console.print(evaluation.category_table())
    return 0


def _dataset(predictor: Predictor, images: Path | None, annotations: Path | None) -> CocoDataset:
    if images is None and annotations is None:
        return _checked(val_dataset(predictor.config.data, masks=False), predictor)
    if images is None or annotations is None:
        raise ValueError("eval CHECKPOINT: give --data-images and --annotations, or neither of them")
    return evaluation_dataset(predictor, images, annotations)


def evaluation_dataset(predictor: Predictor, images: Path, annotations: Path, limit: int | None = None) -> CocoDataset:
    """That data, resized as the checkpoint wants it. Raises ValueError if its classes are not the checkpoint's."""
    transform = evaluation_transform(predictor.config.data)
    return _checked(CocoDataset(images, annotations, transform, limit, masks=False), predictor)


def _checked(dataset: CocoDataset, predictor: Predictor) -> CocoDataset:
    if dataset.class_names != predictor.class_names:
        raise ValueError(
            f"{dataset.annotations}: its {len(dataset.class_names)} categories ({_brief(dataset.class_names)}) are not the "
            f"{len(predictor.class_names)} that the checkpoint was trained on ({_brief(predictor.class_names)})"
        )
    return dataset


def _evaluate(
    predictor: Predictor,
    dataset: CocoDataset,
    batch_size: int,
    workers: int,
    out: Path | None,
    engine: Literal["hotcoco", "pycocotools"],
) -> Evaluation:
    with progress("evaluating") as advance:
        return evaluate_model(
            predictor.model, dataset, device=predictor.model.device, batch_size=batch_size, workers=workers, out=out,
            progress=advance, engine=engine,
        )  # fmt: skip


def _brief(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
