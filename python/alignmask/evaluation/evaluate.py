"""COCO mask AP and alignment statistics, of results files and of models.

Numbers are fractions (0..1); -1 means that there is no ground truth to measure on, as in the
official tool. Shapes: N predictions of one image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from alignmask._files import write_json
from alignmask._printing import counted
from alignmask.config import SCORE_MODES
from alignmask.data import CocoDataset, collate, leave_signals_to_the_main_process
from alignmask.data.batch import Size
from alignmask.evaluation import rle
from alignmask.evaluation.alignment import (
    AlignmentStatistics,
    alignment_table,
    score_iou_pairs,
    statistics,
)
from alignmask.evaluation.calibration import calibration_table, measure
from alignmask.evaluation.duplicates import (
    DUPLICATE_IOU,
    REMOVED,
    Duplicates,
    count_duplicates,
    duplicates_table,
    rival_pairs,
    suppress_duplicates,
)
from alignmask.evaluation.matches import match
from alignmask.evaluation.metrics import (
    OFFICIAL_LIMIT,
    CocoMetrics,
    Engine,
    category_table,
    evaluate_results,
    limit_note,
    numbers_table,
    over_limit,
)
from alignmask.evaluation.results_file import (
    AnnotationsLike,
    GroundTruth,
    Results,
    ResultsLike,
    load_ground_truth,
    load_results,
)
from alignmask.model.postprocess import combine_scores
from alignmask.model.suppression import Suppression

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from alignmask.data import CocoDataset
    from alignmask.model import AlignMask, Instances


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
        }

    def table(self) -> Group:
        """AP and alignment statistics, as a rich renderable."""
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
        tables.append(alignment_table(self.alignment))
        if self.duplicates:
            tables.append(duplicates_table(self.duplicates))
        if self.calibration:
            tables.append(calibration_table({"": self.calibration}))
        return Group(*tables)

    def category_table(self) -> Table:
        """AP per category of the default score mode, best first; categories without ground truth
        last."""
        title = f"mask AP (%) per category, score {self.default}"
        return category_table(self.metrics[self.default], title)


def to_coco_results(
    instances: Instances,
    image_id: int,
    category_ids: Sequence[int],
    scores: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Turn the predictions of one image into entries of a COCO results file.

    Args:
        instances: Predictions at the original size of the image.
        category_ids: COCO category id of each label.
        scores: Float [N], used instead of `instances.scores_N`.
    Raises:
        ValueError: A score is not finite, or the shapes do not agree; the message names the image
            id.
    """
    chosen_N = instances.scores_N if scores is None else scores
    values = chosen_N.detach().float().cpu().numpy().astype(float)
    labels = instances.labels_N.cpu().tolist()
    if not len(values) == len(labels) == len(instances.masks_NHW):
        raise ValueError(
            f"image {image_id}: {len(values)} scores, {len(labels)} labels and "
            f"{len(instances.masks_NHW)} masks"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"image {image_id}: {int((~np.isfinite(values)).sum())} of {len(values)} scores are "
            "not finite"
        )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "segmentation": mask,
            "score": score,
        }
        for label, mask, score in zip(
            labels, rle.encode(instances.masks_NHW), values.tolist(), strict=True
        )
    ]


def evaluate_file(
    annotations: AnnotationsLike,
    results: ResultsLike,
    engine: Engine = "hotcoco",
    *,
    ignore_unknown: bool = False,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
) -> Evaluation:
    """Everything that `Evaluation` has, of a results file of any model; arguments as in
    `evaluate_results`.

    Args:
        suppression, suppression_iou: Non-maximum suppression within each class, before anything is
            measured.
    """
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    return _measure(
        ground_truth, {"score": checked}, "score", engine, suppression, suppression_iou,
        max_detections,
    )  # fmt: skip


def _measure(
    ground_truth: GroundTruth,
    results: Mapping[str, Results],
    default: str,
    engine: Engine,
    suppression: Suppression,
    suppression_iou: float,
    max_detections: int,
) -> Evaluation:
    """Of the same predictions under the scores of several modes."""
    metrics, alignment, counted = {}, {}, {}
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
    return Evaluation(
        metrics=metrics,
        alignment=alignment,
        default=default,
        images=len(ground_truth.sizes),
        predictions=len(kept[default].entries),
        left_out=kept[default].ignored,
        duplicates=counted,
        calibration=measure(match(ground_truth, kept[default])),
        suppression=suppression,
        suppression_iou=suppression_iou,
        max_detections=max_detections,
        images_over_limit=over_limit(ground_truth, kept[default], max_detections),
    )


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
    max_detections: int = OFFICIAL_LIMIT,
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
        max_detections: As in `evaluate_results`.
    """
    rank, world = _rank_and_world()
    shard = range(rank, len(dataset), world)
    predictions = _predict(
        model, dataset, shard, torch.device(device), batch_size, workers, progress
    )

    def assess() -> Evaluation:
        return _assess(
            model, dataset, predictions, out, engine, suppression, suppression_iou, max_detections
        )

    if world > 1:
        from accelerate.utils import broadcast_object_list, gather_object

        predictions = gather_object(predictions)
        holder = [assess() if rank == 0 else None]
        return broadcast_object_list(holder)[0]
    return assess()


def predict_dataset(
    model: AlignMask,
    dataset: CocoDataset,
    *,
    device: torch.device | str,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """The predictions for a data set as COCO results, in the default score mode; nothing is
    measured. Arguments as in `evaluate_model`."""
    everything = range(len(dataset))
    found = _predict(
        model, dataset, everything, torch.device(device), batch_size, workers, progress
    )
    return _entries(_in_order(found))


@dataclass(frozen=True)
class _ImagePredictions:
    """Predictions of one image, small enough to be sent between processes."""

    index: int
    entries: list[dict[str, Any]]
    scores: dict[str, list[float]]
    """By score mode."""


def _predict(
    model: AlignMask,
    dataset: CocoDataset,
    shard: range,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[_ImagePredictions]:
    batches = _batches_of_one_size(dataset, shard, batch_size)
    position = itertools.chain.from_iterable(batches)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_the_main_process,
        pin_memory=device.type == "cuda",
    )
    found: list[_ImagePredictions] = []
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            for image_id, instances in zip(
                batch.image_ids, model.predict(batch.to(device, non_blocking=True)), strict=True
            ):
                entries = to_coco_results(instances, image_id, dataset.category_ids)
                scores: dict[str, list[float]] = {
                    mode: combine_scores(
                        instances.class_scores_N, instances.mask_scores_N, mode
                    ).tolist()
                    for mode in SCORE_MODES
                }
                found.append(_ImagePredictions(next(position), entries, scores))
            if progress is not None:
                progress(len(found), len(shard))
    finally:
        model.train(was_training)
    return found


def _batches_of_one_size(
    dataset: CocoDataset, indices: Iterable[int], batch_size: int
) -> list[list[int]]:
    """Indices in batches of equal size: images are not padded, so that predictions do not depend on
    the rest of the batch."""
    groups: dict[Size, list[int]] = {}
    for index in indices:
        groups.setdefault(dataset.size(index), []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def _in_order(predictions: Iterable[_ImagePredictions]) -> list[_ImagePredictions]:
    """In the order of the data set, which breaks ties, whatever the number of ranks."""
    return sorted(predictions, key=lambda prediction: prediction.index)


def _entries(predictions: Iterable[_ImagePredictions]) -> list[dict[str, Any]]:
    return [entry for prediction in predictions for entry in prediction.entries]


def _assess(
    model: AlignMask,
    dataset: CocoDataset,
    predictions: list[_ImagePredictions],
    out: Path | None,
    engine: Engine,
    suppression: Suppression = "off",
    suppression_iou: float = DUPLICATE_IOU,
    max_detections: int = OFFICIAL_LIMIT,
) -> Evaluation:
    predictions = _in_order(predictions)
    entries = _entries(predictions)
    ground_truth = load_ground_truth(dataset.annotations).subset(dataset.image_ids)
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
        max_detections,
    )  # fmt: skip
    if out is not None:
        write_json(out / "results.json", entries)
        write_json(out / "evaluation.json", evaluation.as_dict(), indent=2)
    return evaluation


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
