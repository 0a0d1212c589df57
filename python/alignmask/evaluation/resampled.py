"""The measures by which two models are compared, for any weights of the images.

Shapes: N predictions, I images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignmask.config import OFFICIAL_LIMIT, SHOWN_SCORE
from alignmask.evaluation.alignment import PER_IMAGE, ScoreIoU, rank_within
from alignmask.evaluation.average_precision import AveragePrecision
from alignmask.evaluation.bootstrap import Measured
from alignmask.evaluation.calibration import localisation_aware_error
from alignmask.evaluation.duplicates import duplicates
from alignmask.evaluation.matches import Matches
from alignmask.evaluation.results_file import GroundTruth, Results

COMPARED = ("AP", "second masks", "PCC", "LaECE0")
TOP = 0.10
"""PCC is of the most confident predictions, 10 per image on average, as in Table 2."""


def compared_measures(
    ground_truth: GroundTruth,
    results: Results,
    pairs: ScoreIoU,
    rivals_P2: np.ndarray,
    matches: Matches,
    max_detections: int = OFFICIAL_LIMIT,
) -> Callable[[np.ndarray | None], Measured]:
    """COMPARED, for weights of the images; each as the evaluation has it.

    Args:
        pairs, rivals_P2: Of these results: `score_iou_pairs`, `rival_pairs`.
        matches: Of these results, at any overlap.
    """
    average_precision = AveragePrecision(ground_truth, results, max_detections)
    index = {image_id: i for i, image_id in enumerate(ground_truth.sizes)}
    image_N = np.array([index[i] for i in pairs.image_ids_N.tolist()], np.int64)
    duplicate_N, shown_N = duplicates(pairs.scores_N, rivals_P2), pairs.scores_N >= SHOWN_SCORE
    order_N = np.argsort(-pairs.scores_N, kind="stable")
    order_N = order_N[rank_within(pairs.image_ids_N, pairs.scores_N)[order_N] < PER_IMAGE]
    most = round(TOP * PER_IMAGE * pairs.images)

    def measure(weight_I: np.ndarray | None) -> Measured:
        if weight_I is None:
            weight_I = np.ones(len(index), np.int64)
        weight_N = weight_I[image_N]
        shown = int(weight_N[shown_N].sum())
        second = int(weight_N[shown_N & duplicate_N].sum())
        # As many predictions as there would be without weights, the last one perhaps in part.
        ranked_N = weight_N[order_N]
        ranked_N = np.clip(most - (np.cumsum(ranked_N) - ranked_N), 0, ranked_N)
        return {
            "AP": average_precision(weight_I)["AP"],
            "second masks": second / shown if shown else None,
            "PCC": weighted_pearson(
                pairs.scores_N[order_N], pairs.iou_same_class_N[order_N], ranked_N
            ),
            "LaECE0": localisation_aware_error(matches, weight_I),
        }

    return measure


def weighted_pearson(x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray) -> float | None:
    """Pearson's correlation of values that count weight_N times; None if it is not defined."""
    there_N = weight_N > 0
    x_N, y_N, weight_N = x_N[there_N], y_N[there_N], weight_N[there_N]
    if weight_N.sum() < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    x_N = x_N - np.average(x_N, weights=weight_N)
    y_N = y_N - np.average(y_N, weights=weight_N)
    spread = float(np.sqrt((weight_N * x_N**2).sum() * (weight_N * y_N**2).sum()))
    return float((weight_N * x_N * y_N).sum()) / spread if spread > 0 else None
