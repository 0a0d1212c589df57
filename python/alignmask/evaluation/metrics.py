"""The official COCO mask metrics of predictions, computed by either of two engines that agree.

Numbers are fractions (0..1); -1 means that there is no ground truth to measure on, as in the
official tool.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

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
    """Mean over categories and the IoU thresholds 0.50:0.05:0.95, 100 detections per image and
    category."""
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    """Small: area below 32^2 pixels; medium: up to 96^2; large: the rest."""
    AR1: float
    AR10: float
    AR100: float
    """Average recall at 1, 10 and 100 detections per image and category."""
    ARs: float
    ARm: float
    ARl: float
    per_category: dict[str, float] = field(default_factory=dict)
    """AP by category name; categories that share a name have their id added."""

    def numbers(self) -> dict[str, float]:
        """The 12 numbers by name."""
        return {name: getattr(self, name) for name in NUMBERS}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.numbers(), "per_category": dict(self.per_category)}

    def table(self, title: str = "mask AP") -> Table:
        """The 12 numbers in percent, as papers print them."""
        return numbers_table({"": self}, title)


NUMBERS = tuple(entry.name for entry in fields(CocoMetrics) if entry.name != "per_category")


def numbers_table(metrics: dict[str, CocoMetrics], title: str) -> Table:
    """One row of the 12 numbers (percent) for each of several named `metrics`."""
    from rich.table import Column

    named = any(metrics)
    table = number_table(title, *NUMBERS, first=Column("score", no_wrap=True) if named else None)
    for name, row in metrics.items():
        numbers = (percent(value) for value in row.numbers().values())
        table.add_row(*([name] if named else []), *numbers)
    return table


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
    Raises:
        alignmask.data.CocoError: A file cannot be read, or has faults; the message lists where they
            are.
    """
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    if image_ids is not None:
        ground_truth, checked = ground_truth.subset(image_ids), checked.subset(image_ids)
    stats, precision_TRKAM = _ENGINES[engine](ground_truth, checked)
    return CocoMetrics(
        **dict(zip(NUMBERS, (float(value) for value in stats), strict=True)),
        per_category=_per_category(ground_truth.categories, precision_TRKAM),
    )


def _per_category(categories: dict[int, str], precision_TRKAM: np.ndarray) -> dict[str, float]:
    """AP of each category: thresholds T, recalls R, categories K; all areas (A = 0), 100 detections
    (M = last)."""
    repeated = Counter(categories.values())
    result = {}
    for k, (category_id, name) in enumerate(categories.items()):
        values = precision_TRKAM[:, :, k, 0, -1]
        values = values[values > -1]
        result[name if repeated[name] == 1 else f"{name} ({category_id})"] = (
            float(values.mean()) if values.size else -1.0
        )
    return result


def _run_hotcoco(ground_truth: GroundTruth, results: Results) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    data = hotcoco.COCO(ground_truth.as_coco())
    evaluation = hotcoco.COCOeval(data, data.load_res(results.entries), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):  # the tools print their summary
        evaluation.summarize()
    assert evaluation.eval is not None  # accumulate() was called
    return np.asarray(evaluation.stats), np.asarray(evaluation.eval["precision"])


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


def _run_pycocotools(ground_truth: GroundTruth, results: Results) -> tuple[np.ndarray, np.ndarray]:
    evaluation = official_tool(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats), evaluation.eval["precision"]


_ENGINES = {"hotcoco": _run_hotcoco, "pycocotools": _run_pycocotools}
