"""COCO mask AP and alignment statistics, of results files and of models.

Numbers are fractions (0..1); -1 means that there is no ground truth to measure on, as in the
official tool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignmask._files import write_json
from alignmask._printing import counted
from alignmask.config import DUPLICATE_IOU, OFFICIAL_LIMIT, SCORE_MODES, Suppression
from alignmask.evaluation import bootstrap
from alignmask.evaluation.alignment import (
    AlignmentStatistics,
    alignment_table,
    score_iou_pairs,
    statistics,
)
from alignmask.evaluation.average_precision import AveragePrecision
from alignmask.evaluation.best_f1 import F1_IOU, BestF1, best_thresholds
from alignmask.evaluation.bootstrap import Estimate
from alignmask.evaluation.calibration import calibration_table, measure
from alignmask.evaluation.confusion import CONFUSION_IOU, FEW, Confusion, confusion
from alignmask.evaluation.duplicates import (
    REMOVED,
    Duplicates,
    count_by_class,
    count_duplicates,
    duplicates_table,
    rival_pairs,
    suppress_duplicates,
)
from alignmask.evaluation.errors import FOUND, ErrorSplit, error_split, error_table
from alignmask.evaluation.matches import match
from alignmask.evaluation.metrics import (
    CocoMetrics,
    Engine,
    evaluate_results,
    limit_note,
    numbers_table,
    over_limit,
    percent,
    with_limit,
)
from alignmask.evaluation.per_class import FEW_CLASSES, ClassRow, class_rows, class_table
from alignmask.evaluation.predictions import (
    ImagePredictions,
    entries_of,
    in_order,
    predict_images,
)
from alignmask.evaluation.results_file import (
    AnnotationsLike,
    GroundTruth,
    Results,
    ResultsLike,
    load_ground_truth,
    load_results,
)
from alignmask.model.tiles import Tiles

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from alignmask.data import CocoDataset
    from alignmask.model import AlignMask


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_model` and `evaluate_file` measured, by score mode (SCORE_MODES; a file has
    one: "score")."""

    metrics: dict[str, CocoMetrics]
    alignment: dict[str, AlignmentStatistics]
    default: str
    """The score mode that results.json was written with."""
    images: int
    predictions: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Entries that were not evaluated (`ignore_unknown`, suppression), counted by reason; of the
    default score mode."""
    duplicates: dict[str, dict[str, Duplicates]] = field(default_factory=dict)
    """Second masks of one object, by score mode, among the predictions that are shown and the most
    confident."""
    calibration: dict[str, float | None] = field(default_factory=dict)
    """The score as a forecast (`calibration.measure`), of the default score mode."""
    suppression: Suppression = "off"
    suppression_iou: float = DUPLICATE_IOU
    max_detections: int = OFFICIAL_LIMIT
    """Predictions of a category in an image that AP is over, the best-scored ones."""
    images_over_limit: dict[str, int] = field(default_factory=dict)
    """Images with more "objects" of a category than that, and with more "predictions" of one (in
    the default score mode). Both limit AP."""
    classes: tuple[ClassRow, ...] = ()
    """A row for each class, of the default score mode."""
    confusion: Confusion | None = None
    """Which classes are taken for which, in the default score mode."""
    errors: ErrorSplit | None = None
    """AP50 lost to each kind of error, in the default score mode, if it was asked for."""
    intervals: dict[str, Estimate] = field(default_factory=dict)
    """AP and AP50 of the default score mode with their 95 % intervals over images, if they were
    asked for."""
    best_f1: BestF1 | None = None
    """The threshold for all classes together with the largest F1, in the default score mode; those
    of the classes are in `classes`."""

    @property
    def AP(self) -> float:
        """Mask AP of the default score mode."""
        return self.metrics[self.default].AP

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "images": self.images,
            "predictions": self.predictions,
            "left_out": self.left_out,
            "suppression": self.suppression,
            "suppression_iou": None if self.suppression == "off" else self.suppression_iou,
            "max_detections": self.max_detections,
            "images_over_limit": self.images_over_limit,
            "default": self.default,
            "modes": {
                mode: {
                    "metrics": metrics.as_dict(),
                    "alignment": self.alignment[mode].as_dict(),
                    "duplicates": {
                        name: entry.as_dict()
                        for name, entry in self.duplicates.get(mode, {}).items()
                    },
                }
                for mode, metrics in self.metrics.items()
            },
            "calibration": self.calibration,
            "classes": [row.as_dict() for row in self.classes],
            "confusion": None if self.confusion is None else self.confusion.as_dict(),
            "intervals": {name: entry.as_dict() for name, entry in self.intervals.items()},
            "best_f1": None if self.best_f1 is None else self.best_f1.as_dict(),
            "errors": None if self.errors is None else self.errors.as_dict(),
        }

    def table(self, per_class: bool | None = None) -> Group:
        """Everything that was measured, as a rich renderable.

        Args:
            per_class: Whether a line for each class is shown; None: if there are at most 20.
        """
        from rich.console import Group
        from rich.text import Text

        size = f"{counted(self.images, 'image')}, {counted(self.predictions, 'prediction')}"
        removed = self.left_out.get(REMOVED, 0)
        others = sum(self.left_out.values()) - removed
        left_out = f" ({others} left out)" if others else ""
        suppressed = f", {removed} removed by suppression" if self.suppression == "hard" else ""
        title = f"mask AP (%), {size}{left_out}{suppressed}"
        tables: list[RenderableType] = [numbers_table(self.metrics, title)]
        if note := limit_note(self.images_over_limit, self.max_detections):
            tables.append(Text(f"{note}\n"))
        if self.intervals:
            tables.append(Text(f"{interval_note(self.intervals)}\n"))
        tables.append(alignment_table(self.alignment))
        if self.duplicates:
            tables.append(duplicates_table(self.duplicates))
        if self.calibration:
            tables.append(calibration_table({"": self.calibration}))
        if self.best_f1 is not None and self.best_f1.threshold is not None:
            best, several = self.best_f1, len(self.classes) > 1
            what = "For all classes together, F1" if several else "F1"
            tables.append(
                Text(
                    f"{what} (IoU 0.5) is largest from a score of {best.threshold:.3f} on: "
                    f"{percent(best.f1)} %.\n"
                )
            )
        if per_class or (per_class is None and len(self.classes) <= FEW_CLASSES):
            tables.append(self.class_table())
        if self.confusion is not None and 1 < len(self.classes) <= FEW:
            tables.append(self.confusion.table())
        if self.errors is not None:
            tables.append(error_table({"": self.errors}))
        return Group(*tables)

    def class_table(self) -> Table:
        """A line for each class in the default score mode, best AP first; classes without ground
        truth last."""
        metrics = self.metrics[self.default]
        mode = "" if self.default == "score" else f", score {self.default}"
        title = with_limit(f"per class (%){mode}", [metrics])
        return class_table(self.classes, metrics, title)


def evaluate_file(
    annotations: AnnotationsLike,
    results: ResultsLike,
    engine: Engine = "hotcoco",
    *,
    ignore_unknown: bool = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
    errors: bool = False,
    intervals: bool = False,
) -> Evaluation:
    """Everything that `Evaluation` has, of a results file of any model; arguments as in
    `evaluate_results`.

    Args:
        suppression, suppression_iou: Non-maximum suppression within each class, before anything is
            measured.
        errors: Split the lost AP by kind of error, too.
        intervals: Also find intervals of AP over images.
    """
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    return _measure(
        ground_truth, {"score": checked}, "score", engine, suppression, suppression_iou,
        max_detections, errors, intervals,
    )  # fmt: skip


def _measure(
    ground_truth: GroundTruth,
    results: Mapping[str, Results],
    default: str,
    engine: Engine,
    suppression: Suppression,
    suppression_iou: float,
    max_detections: int,
    errors: bool = False,
    intervals: bool = False,
) -> Evaluation:
    """Of the same predictions under the scores of several modes."""
    metrics, alignment, counted = {}, {}, {}
    of_class: dict[int, Duplicates] = {}
    pairs, rivals_P2 = None, None
    kept = {
        mode: suppress_duplicates(scored, suppression, suppression_iou)
        for mode, scored in results.items()
    }
    for mode, scored in kept.items():
        # Or else the masks are the same in all modes.
        if pairs is None or rivals_P2 is None or suppression == "hard":
            pairs, rivals_P2 = score_iou_pairs(ground_truth, scored), rival_pairs(scored)
        pairs = pairs.with_scores(np.array([entry["score"] for entry in scored.entries]))
        metrics[mode] = evaluate_results(
            ground_truth, scored, engine, max_detections=max_detections
        )
        alignment[mode] = statistics(pairs)
        counted[mode] = count_duplicates(pairs, rivals_P2)
        if mode == default:
            of_class = count_by_class(pairs, rivals_P2)
    matches = match(ground_truth, kept[default], per_class=max_detections)
    thresholds = best_thresholds(matches[F1_IOU])
    return Evaluation(
        metrics=metrics,
        alignment=alignment,
        default=default,
        images=len(ground_truth.sizes),
        predictions=len(kept[default].entries),
        left_out=kept[default].ignored,
        duplicates=counted,
        calibration=measure(matches),
        suppression=suppression,
        suppression_iou=suppression_iou,
        max_detections=max_detections,
        images_over_limit=over_limit(ground_truth, kept[default], max_detections),
        classes=class_rows(ground_truth, metrics[default], of_class, thresholds),
        confusion=confusion(ground_truth, kept[default], matches[CONFUSION_IOU]),
        intervals=_intervals(ground_truth, kept[default], max_detections) if intervals else {},
        best_f1=thresholds.pooled,
        errors=error_split(ground_truth, kept[default], matches[FOUND]) if errors else None,
    )


def _intervals(
    ground_truth: GroundTruth, results: Results, max_detections: int
) -> dict[str, Estimate]:
    measured = AveragePrecision(ground_truth, results, max_detections)
    return bootstrap.intervals(measured, len(ground_truth.sizes))


def interval_note(intervals: Mapping[str, Estimate]) -> str:
    """A sentence of the intervals of AP, in percent."""
    parts = [f"{name} {entry.percent()}" for name, entry in intervals.items()]
    return f"With 95 % intervals over images: {', '.join(parts)}"


def evaluate_model(
    model: AlignMask,
    dataset: CocoDataset,
    *,
    device: torch.device | str,
    batch_size: int,
    workers: int,
    out: Path | None,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = "hotcoco",
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    tiles: Tiles | None = None,
    max_detections: int = OFFICIAL_LIMIT,
    errors: bool = False,
    intervals: bool = False,
) -> Evaluation:
    """Run `model.predict` over a data set and measure the predictions against the annotation file,
    in all score modes.

    If torch.distributed is initialised, each rank predicts its share of the images, and every rank
    returns the evaluation of all of them.

    Args:
        model: The model. It is put into evaluation mode, and afterwards back into the mode it was
            in.
        dataset: A data set with the evaluation transform. Ground truth is read from its annotation
            file.
        batch_size: Images per forward pass and rank; all of one size.
        workers: Number of data-loading processes.
        out: Folder for results.json (in the default score mode) and evaluation.json, both written
            atomically. None writes nothing.
        progress: Called with (images done, images of this rank) after every batch.
        suppression, suppression_iou: Non-maximum suppression within each class, before anything is
            measured. results.json has all predictions nevertheless.
        tiles: Predict tile by tile; `batch_size` is the number of tiles then. None resizes each
            image as a whole.
        max_detections: As in `evaluate_results`.
        errors: Split the lost AP by kind of error, too.
        intervals: Also find intervals of AP over images.
    """
    rank, world = _rank_and_world()
    shard = range(rank, len(dataset), world)
    predictions = predict_images(
        model, dataset, shard, torch.device(device), batch_size, workers, progress, tiles
    )

    def assess() -> Evaluation:
        return _assess(
            model, dataset, predictions, out, engine, suppression, suppression_iou, max_detections,
            errors, intervals,
        )  # fmt: skip

    if world > 1:
        from accelerate.utils import broadcast_object_list, gather_object

        predictions = gather_object(predictions)
        holder = [assess() if rank == 0 else None]
        return broadcast_object_list(holder)[0]
    return assess()


def _assess(
    model: AlignMask,
    dataset: CocoDataset,
    predictions: list[ImagePredictions],
    out: Path | None,
    engine: Engine,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
    errors: bool = False,
    intervals: bool = False,
) -> Evaluation:
    predictions = in_order(predictions)
    entries = entries_of(predictions)
    ground_truth = load_ground_truth(dataset.annotations, dataset.images).subset(dataset.image_ids)
    results = load_results(entries, ground_truth)
    scored: dict[str, Results] = {}
    for mode in SCORE_MODES:
        scores = [score for prediction in predictions for score in prediction.scores[mode]]
        rescored = [
            {**entry, "score": score} for entry, score in zip(results.entries, scores, strict=True)
        ]
        scored[mode] = replace(results, entries=rescored)
    evaluation = _measure(
        ground_truth, scored, model.config.score, engine, suppression, suppression_iou,
        max_detections, errors, intervals,
    )  # fmt: skip
    if out is not None:
        write_json(out / "results.json", entries)
        write_json(out / "evaluation.json", evaluation.as_dict(), indent=2)
    return evaluation


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
