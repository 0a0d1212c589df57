"""The official COCO mask metrics of predictions, computed by either of two engines that agree.

Numbers are fractions (0..1); -1 means that there is no ground truth to measure on, as in the
official tool.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from alignmask._printing import counted
from alignmask.config import LEAST_LIMIT, OFFICIAL_LIMIT
from alignmask.evaluation.results_file import (
    AnnotationsLike,
    GroundTruth,
    Results,
    ResultsLike,
    load_ground_truth,
    load_results,
)
from alignmask.evaluation.tables import number_table

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval
    from rich.table import Table


Engine = Literal["hotcoco", "pycocotools"]


@dataclass(frozen=True)
class CocoMetrics:
    """The 12 official numbers (segm), and AP per category."""

    AP: float
    """Mean over categories and the IoU thresholds 0.50:0.05:0.95, `max_detections` per image
    and category."""
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    """Small: area below 32^2 pixels; medium: up to 96^2; large: the rest."""
    AR1: float
    AR10: float
    AR100: float
    """Average recall at 1, 10 and `max_detections` (officially 100) detections per image and
    category."""
    ARs: float
    ARm: float
    ARl: float
    per_category: dict[str, float] = field(default_factory=dict)
    """AP by category name; categories that share a name have their id added."""
    per_category_AP50: dict[str, float] = field(default_factory=dict)
    per_category_AR: dict[str, float] = field(default_factory=dict)
    """Likewise AP50, and the average recall at `max_detections`."""
    max_detections: int = OFFICIAL_LIMIT

    def numbers(self) -> dict[str, float]:
        """The 12 numbers by name."""
        return {name: getattr(self, name) for name in NUMBERS}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.numbers(), "per_category": dict(self.per_category)}

    def table(self, title: str = "mask AP") -> Table:
        """The 12 numbers in percent, as papers print them."""
        return numbers_table({"": self}, title)


NUMBERS = tuple(entry.name for entry in fields(CocoMetrics))[:12]


def headings(metrics: Iterable[CocoMetrics]) -> list[str]:
    """The names of the 12 numbers, that of AR100 by the limit that it has."""
    limit = max((row.max_detections for row in metrics), default=OFFICIAL_LIMIT)
    return [f"AR{limit}" if name == "AR100" else name for name in NUMBERS]


def with_limit(title: str, metrics: Iterable[CocoMetrics]) -> str:
    """The title of a table of metrics, with the limit if it is not the official one."""
    limits = {row.max_detections for row in metrics} - {OFFICIAL_LIMIT}
    return f"{title}; at most {max(limits)} a class and image" if limits else title


def numbers_table(metrics: dict[str, CocoMetrics], title: str) -> Table:
    """One row of the 12 numbers (percent) for each of several named `metrics`."""
    from rich.table import Column

    named = any(metrics)
    names, title = headings(metrics.values()), with_limit(title, metrics.values())
    table = number_table(title, *names, first=Column("score", no_wrap=True) if named else None)
    for name, row in metrics.items():
        numbers = (percent(value) for value in row.numbers().values())
        table.add_row(*([name] if named else []), *numbers)
    return table


def limit_note(over: Mapping[str, int], limit: int) -> str:
    """A sentence about images that exceed the limit (see `over_limit`); none if there are none."""
    images = [
        f"{counted(number, 'image has', 'images have')} more {what}"
        for what, number in over.items()
        if number
    ]
    if not images:
        return ""
    return (
        f"At most {limit} predictions of a class count in an image, which limits AP, F1 and the errors: "
        f"{', '.join(images)} of one class. --max-detections measures with another limit."
    )


def percent(value: float) -> str:
    """A fraction as percent with one decimal; "-" where there was nothing to measure."""
    return "-" if value < 0 else f"{100 * value:.1f}"


def evaluate_results(
    annotations: AnnotationsLike,
    results: ResultsLike,
    engine: Engine = "hotcoco",
    *,
    image_ids: Sequence[int] | None = None,
    ignore_unknown: bool = False,
    max_detections: int = OFFICIAL_LIMIT,
) -> CocoMetrics:
    """The official COCO mask metrics of predictions.

    Areas of predictions are those of their masks (any `bbox` in the results is ignored), areas of
    ground truth those of the annotation file.

    Args:
        annotations: COCO annotation file.
        results: COCO results file, or its entries; see
            `alignmask.evaluation.results_file.load_results` for what is checked.
        engine: "hotcoco" (fast) or "pycocotools" (the official tool); the numbers are equal.
        image_ids: Evaluate only these images.
        ignore_unknown: Leave out what `load_results` can leave out, instead of raising.
        max_detections: Predictions of a category that count in an image, the best-scored ones; at
            least 10. Only with 100 are the numbers the official ones.
    Raises:
        ValueError: `max_detections` is too small.
        alignmask.data.CocoError: A file cannot be read, or has faults; the message lists where they
            are.
    """
    check_limit(max_detections)
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    if image_ids is not None:
        ground_truth, checked = ground_truth.subset(image_ids), checked.subset(image_ids)
    precision_TRKAM, recall_TKAM = _ENGINES[engine](ground_truth, checked, max_detections)
    return CocoMetrics(
        **dict(zip(NUMBERS, _summary(precision_TRKAM, recall_TKAM), strict=True)),
        per_category=_per_category(ground_truth.categories, precision_TRKAM[..., 0, -1]),
        per_category_AP50=_per_category(ground_truth.categories, precision_TRKAM[:1, ..., 0, -1]),
        per_category_AR=_per_category(ground_truth.categories, recall_TKAM[..., 0, -1]),
        max_detections=max_detections,
    )


def check_limit(max_detections: int) -> None:
    """Raises ValueError if the limit is too small."""
    if max_detections < LEAST_LIMIT:
        raise ValueError(f"max_detections: expected {LEAST_LIMIT} or more, got {max_detections}")


def over_limit(ground_truth: GroundTruth, results: Results, limit: int) -> dict[str, int]:
    """The number of images that have more objects of one category than count, and of those that
    have more predictions of one. (Crowds are no objects.)"""
    found = {
        "objects": [a for a in ground_truth.annotations if not a["iscrowd"]],
        "predictions": results.entries,
    }
    counts = {
        what: Counter((entry["image_id"], entry["category_id"]) for entry in entries)
        for what, entries in found.items()
    }
    return {
        what: len({image for (image, _), number in count.items() if number > limit})
        for what, count in counts.items()
    }


def _summary(precision_TRKAM: np.ndarray, recall_TKAM: np.ndarray) -> list[float]:
    """The 12 numbers. (The tools' own summaries know the official limit alone.) Thresholds T from
    0.50 in steps of 0.05, areas A: all, small, medium, large; limits M: 1, 10, the given one."""
    precision_TRKA = precision_TRKAM[..., -1]
    averaged = [
        precision_TRKA[..., 0],
        precision_TRKA[0, ..., 0],
        precision_TRKA[5, ..., 0],
        *(precision_TRKA[..., area] for area in (1, 2, 3)),
        *(recall_TKAM[..., 0, limit] for limit in (0, 1, 2)),
        *(recall_TKAM[..., area, -1] for area in (1, 2, 3)),
    ]
    return [_mean(values) for values in averaged]


def _mean(values: np.ndarray) -> float:
    """Of those that are defined; -1 if none is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _per_category(categories: dict[int, str], values_K: np.ndarray) -> dict[str, float]:
    """The mean of some values of each category, which are along the last axis."""
    names = unique_names(categories).values()
    return {name: _mean(values_K[..., k]) for k, name in enumerate(names)}


def unique_names(categories: Mapping[int, str]) -> dict[int, str]:
    """Category names by id; those that several share have their id added."""
    repeated = Counter(categories.values())
    return {
        category_id: name if repeated[name] == 1 else f"{name} ({category_id})"
        for category_id, name in categories.items()
    }


def _run_hotcoco(
    ground_truth: GroundTruth, results: Results, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> precision, recall"""
    import hotcoco

    data = hotcoco.COCO(ground_truth.as_coco())
    evaluation = hotcoco.COCOeval(data, data.load_res(results.entries), "segm")
    evaluation.params.max_dets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None  # accumulate() was called
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def official_tool(ground_truth: GroundTruth, results: Results) -> COCOeval:
    """The official tool, given the data and not yet run. It prints whatever it does."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = ground_truth.as_coco()
        data.createIndex()
        if results.entries:
            predictions = data.loadRes([dict(entry) for entry in results.entries])
        else:  # loadRes looks at the first entry
            predictions = COCO()
            predictions.dataset = {**ground_truth.as_coco(), "annotations": []}
            predictions.createIndex()
        return COCOeval(data, predictions, "segm")


def _run_pycocotools(
    ground_truth: GroundTruth, results: Results, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> precision, recall"""
    evaluation = official_tool(ground_truth, results)
    evaluation.params.maxDets = [1, 10, max_detections]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


_ENGINES = {"hotcoco": _run_hotcoco, "pycocotools": _run_pycocotools}
