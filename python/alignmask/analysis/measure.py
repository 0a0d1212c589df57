"""The measurements of one model's predictions on a data set.

Shapes: N predictions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from alignmask.analysis.inversions import Inversion, worst_inversions
from alignmask.config import OFFICIAL_LIMIT
from alignmask.evaluation.alignment import (
    AlignmentStatistics,
    ScoreIoU,
    oracle_scores,
    score_iou_pairs,
    statistics,
)
from alignmask.evaluation.bootstrap import Estimate, Measure
from alignmask.evaluation.calibration import measure
from alignmask.evaluation.duplicates import Duplicates, count_duplicates, rival_pairs
from alignmask.evaluation.errors import FOUND, ErrorSplit, error_split
from alignmask.evaluation.matches import ANY_OVERLAP, match
from alignmask.evaluation.metrics import CocoMetrics, Engine, evaluate_results, over_limit
from alignmask.evaluation.resampled import compared_measures
from alignmask.evaluation.results_file import GroundTruth, Results


@dataclass(frozen=True)
class ModelAnalysis:
    """What was measured of one model."""

    name: str
    results: Results
    pairs: ScoreIoU
    """Of every entry of `results`."""
    metrics: CocoMetrics
    by_iou: CocoMetrics
    """Ranked by IoU (same class) instead of the score."""
    oracle: CocoMetrics
    """Ranked by `oracle_scores`: the metrics that a perfect ranking of the same masks would
    have."""
    alignment: AlignmentStatistics
    inversions: list[Inversion]
    duplicates: dict[str, Duplicates]
    """Second masks of one object among the predictions that are shown, and the most confident
    ones."""
    calibration: dict[str, float | None]
    """The score as a forecast: `alignmask.evaluation.calibration.measure`."""
    errors: ErrorSplit
    """AP50 lost to each kind of error."""
    compared: Measure = field(repr=False)
    """The measures that models are compared by, for weights of the images."""
    images_over_limit: dict[str, int]
    """As in `alignmask.evaluation.evaluate.Evaluation`."""
    difference: dict[str, Estimate] = field(default_factory=dict)
    """Of each measure: this model's minus the first model's, with an interval over images; empty
    for the first one."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "source": self.results.source,
            "left_out": self.results.ignored,
            "max_detections": self.metrics.max_detections,
            "images_over_limit": self.images_over_limit,
            "metrics": self.metrics.as_dict(),
            "metrics_ranked_by_iou": self.by_iou.as_dict(),
            "metrics_ranked_by_iou_duplicates_last": self.oracle.as_dict(),
            "alignment": self.alignment.as_dict(),
            "duplicates": {name: entry.as_dict() for name, entry in self.duplicates.items()},
            "calibration": self.calibration,
            "errors": self.errors.as_dict(),
            "difference_to_the_first": {
                name: entry.as_dict() for name, entry in self.difference.items()
            },
            "inversions": [
                {**asdict(inversion), **self._both(inversion)} for inversion in self.inversions
            ],
        }

    def _both(self, inversion: Inversion) -> dict[str, Any]:
        positions = {"high": inversion.high, "low": inversion.low}
        return {
            **{f"{name}_score": float(self.pairs.scores_N[n]) for name, n in positions.items()},
            **{
                f"{name}_iou_any_class": float(self.pairs.iou_any_class_N[n])
                for name, n in positions.items()
            },
        }


def analyze_model(
    name: str,
    ground_truth: GroundTruth,
    results: Results,
    *,
    inversions: int = 8,
    engine: Engine = "hotcoco",
    max_detections: int = OFFICIAL_LIMIT,
) -> ModelAnalysis:
    """Measure one model.

    Args:
        results: The predictions; all of them are of images of `ground_truth`.
        inversions: Number of the worst rank inversions to keep.
        max_detections: As in `evaluate_results`.
    """
    pairs = score_iou_pairs(ground_truth, results)

    def measured(scored: Results) -> CocoMetrics:
        return evaluate_results(ground_truth, scored, engine, max_detections=max_detections)

    def ranked(scores_N: np.ndarray) -> CocoMetrics:
        entries = [
            {**entry, "score": s}
            for entry, s in zip(results.entries, scores_N.tolist(), strict=True)
        ]
        return measured(replace(results, entries=entries))

    matches = match(ground_truth, results, per_class=max_detections)
    rivals_P2 = rival_pairs(results)
    return ModelAnalysis(
        name=name,
        results=results,
        pairs=pairs,
        metrics=measured(results),
        by_iou=ranked(pairs.iou_same_class_N),
        oracle=ranked(oracle_scores(pairs)),
        alignment=statistics(pairs),
        inversions=worst_inversions(pairs, inversions),
        duplicates=count_duplicates(pairs, rivals_P2),
        compared=compared_measures(
            ground_truth, results, pairs, rivals_P2, matches[ANY_OVERLAP], max_detections
        ),
        calibration=measure(matches),
        errors=error_split(ground_truth, results, matches[FOUND]),
        images_over_limit=over_limit(ground_truth, results, max_detections),
    )
