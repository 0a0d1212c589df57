"""COCO's AP of resampled images: matched once, accumulated for any weights of the images.

Shapes: N predictions, I images, C classes, T IoU thresholds, R recalls, K right predictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignmask.config import OFFICIAL_LIMIT
from alignmask.evaluation.matches import Matches, match
from alignmask.evaluation.results_file import GroundTruth, Results

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
"""Those of the official tool."""


@dataclass(frozen=True)
class _Ranked:
    """The matches at one IoU threshold, by class and then by score, the best first."""

    image_N: np.ndarray
    start_C: np.ndarray
    """Where the predictions of each class begin."""
    right_K: np.ndarray
    """Positions of the right ones, ascending."""
    class_K: np.ndarray


class AveragePrecision:
    """AP and AP50 of the predictions for a data set in which image i counts weight_I[i] times.

    The numbers are those of the official tool, given the same images that often. Predictions of
    equal scores come in the order of the image ids, and all copies of one prediction after one
    another.
    """

    def __init__(
        self, ground_truth: GroundTruth, results: Results, max_detections: int = OFFICIAL_LIMIT
    ) -> None:
        thresholds = IOU_THRESHOLDS.tolist()
        matches = match(ground_truth, results, thresholds, per_class=max_detections)
        self.ranked = [_ranked(found) for found in matches.values()]
        self.truths_IC = next(iter(matches.values())).truths_IC

    def __call__(self, weight_I: np.ndarray | None = None) -> Mapping[str, float | None]:
        """AP and AP50 as fractions; None where no image with an object has a weight."""
        if weight_I is None:
            weight_I = np.ones(len(self.truths_IC), np.int64)
        truths_C = weight_I @ self.truths_IC
        classes = np.flatnonzero(truths_C)
        if not len(classes):
            return {"AP": None, "AP50": None}
        needed_CR = _needed(truths_C[classes])
        AP_T = [_mean_precision(ranked, weight_I, classes, needed_CR) for ranked in self.ranked]
        return {"AP": float(np.mean(AP_T)), "AP50": AP_T[0]}


def _ranked(matches: Matches) -> _Ranked:
    id_N = np.array(matches.image_ids)[matches.image_N]
    order_N = np.lexsort((id_N, -matches.scores_N, matches.class_N))
    class_N = matches.class_N[order_N]
    right_K = np.flatnonzero(matches.matched_N[order_N])
    return _Ranked(
        image_N=matches.image_N[order_N],
        start_C=np.searchsorted(class_N, np.arange(matches.truths_IC.shape[1] + 1)),
        right_K=right_K,
        class_K=class_N[right_K],
    )


def _needed(truths_C: np.ndarray) -> np.ndarray:
    """int64 [C, R]: the least number of right predictions with which a class reaches each recall,
    in the tool's own floating-point numbers."""
    needed_CR = np.ceil(RECALLS * truths_C[:, None]).astype(np.int64)
    needed_CR -= (needed_CR > 0) & ((needed_CR - 1) / truths_C[:, None] >= RECALLS)
    return needed_CR + (needed_CR / truths_C[:, None] < RECALLS)


def _mean_precision(
    ranked: _Ranked, weight_I: np.ndarray, classes: np.ndarray, needed_CR: np.ndarray
) -> float:
    """The mean over the classes and recalls of the best precision at that recall or a larger one.

    Only right predictions matter: between two of them precision falls, and recall stays.
    """
    kept_N = np.concatenate([[0], np.cumsum(weight_I[ranked.image_N])])
    weight_K = weight_I[ranked.image_N[ranked.right_K]]
    right_K = np.cumsum(weight_K)  # over all classes so far
    ends_C = np.searchsorted(ranked.class_K, np.arange(len(ranked.start_C)))
    before_C = np.concatenate([[0], right_K])[ends_C]
    own_K = right_K - before_C[ranked.class_K]
    kept_K = kept_N[ranked.right_K + 1] - kept_N[ranked.start_C[ranked.class_K]]
    precision_K = own_K / np.maximum(kept_K, 1)
    # The best precision from each on, within the class: classes do not mix if each lies in an
    # interval of its own.
    level_K = precision_K - 2.0 * ranked.class_K
    best_K = np.maximum.accumulate(level_K[::-1])[::-1] + 2.0 * ranked.class_K
    best_K = np.append(best_K, 0.0)
    # The first right prediction with which the class has as many as are needed.
    place_CR = np.searchsorted(right_K, before_C[classes][:, None] + np.maximum(needed_CR, 1))
    reached_CR = place_CR < ends_C[classes + 1][:, None]
    return float(np.where(reached_CR, best_K[np.minimum(place_CR, len(best_K) - 1)], 0.0).mean())
