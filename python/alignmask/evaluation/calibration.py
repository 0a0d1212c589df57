"""What a score is worth as a forecast: calibration errors, the localisation-recall-precision error,
Brier score, AUROC.

All are measured on `matches.Matches`. Each takes weights of the images, so that a bootstrap needs
no new matching: an image of weight 2 counts as two images. None stands for what is not defined.

Shapes: N predictions, I images, C classes, U different scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignmask.evaluation.matches import ANY_OVERLAP, Matches
from alignmask.evaluation.tables import number_table, three_decimals

if TYPE_CHECKING:
    from rich.table import Table

BINS = 25
EDGES = np.arange(BINS + 1) / BINS
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""Pixels of a mask: more than the first and at most the second."""


def score_bin(scores_N: np.ndarray) -> np.ndarray:
    """Which of the BINS each score lies in: [0, 1/25], (1/25, 2/25], ... (24/25, 1]; the outer ones
    take all beyond."""
    return np.clip(np.searchsorted(EDGES, scores_N, side="left") - 1, 0, BINS - 1)


def detection_calibration_error(
    matches: Matches, weight_I: np.ndarray | None = None
) -> float | None:
    """D-ECE: the score as a forecast of being right (Kueppers et al., CVPR Workshops 2020), classes
    pooled.

    The sum over bins of (share of the predictions) x |share of right predictions - mean score|;
    right is what is matched, usually at an IoU of 0.5. None without a prediction, or for scores
    outside 0..1.
    """
    weight_N = _weights(matches, weight_I)
    if not matches.are_probabilities or not weight_N.sum():
        return None
    difference_N = weight_N * (matches.matched_N - matches.scores_N)
    return float(
        np.abs(np.bincount(score_bin(matches.scores_N), difference_N, BINS)).sum() / weight_N.sum()
    )


def localisation_aware_error(matches: Matches, weight_I: np.ndarray | None = None) -> float | None:
    """LaECE_0, of matches at any overlap: the score as a forecast of the IoU (Kuzucu, Oksuz et al.,
    ECCV 2024, arXiv 2405.20459).

    Of one class: the sum over bins of (share of the predictions) x |mean IoU - mean score|; the IoU
    of an unmatched prediction is 0. Then the mean over the classes that have objects and
    predictions. None if no class has, or for scores outside 0..1.
    """
    classes = matches.truths_IC.shape[1]
    cell_N = matches.class_N * BINS + score_bin(matches.scores_N)
    difference_N = _weights(matches, weight_I) * (matches.iou_N - matches.scores_N)
    error_C = np.abs(np.bincount(cell_N, difference_N, classes * BINS).reshape(classes, BINS)).sum(
        axis=1
    )
    return _mean_over_classes(matches, error_C, weight_I)


def localisation_aware_adaptive_error(
    matches: Matches, weight_I: np.ndarray | None = None
) -> float | None:
    """LaACE_0, of matches at any overlap: as LaECE_0, with a bin for every prediction: the mean of
    |score - IoU| of each class, and the mean over classes."""
    error_N = _weights(matches, weight_I) * np.abs(matches.iou_N - matches.scores_N)
    return _mean_over_classes(
        matches, np.bincount(matches.class_N, error_N, matches.truths_IC.shape[1]), weight_I
    )


def _mean_over_classes(
    matches: Matches, sum_C: np.ndarray, weight_I: np.ndarray | None
) -> float | None:
    """The mean, over the classes that have objects and predictions, of the mean over their
    predictions."""
    count_C = np.bincount(matches.class_N, _weights(matches, weight_I), len(sum_C))
    counted_C = (count_C > 0) & (_truths(matches, weight_I) > 0)
    if not matches.are_probabilities or not counted_C.any():
        return None
    return float((sum_C[counted_C] / count_C[counted_C]).mean())


@dataclass(frozen=True)
class LRP:
    """The optimal localisation-recall-precision error and its parts: 0 is perfect, 1 the worst."""

    error: float
    localisation: float | None
    """1 - mean IoU of the right predictions."""
    false_positive: float | None
    """1 - precision. None, as the localisation, where the best is to keep no prediction."""
    false_negative: float
    """1 - recall."""
    threshold: float | None
    """The score from which on predictions are kept at this optimum."""


def optimal_lrp(matches: Matches, weight_I: np.ndarray | None = None) -> dict[int, LRP]:
    """oLRP by category id, of the classes that have objects (Oksuz et al., TPAMI 2021, arXiv
    2011.10772).

    The predictions with a score of at least s leave TP right ones (matched with an IoU of at least
    t, usually 0.5), FP wrong ones, and FN objects without one. LRP(s) = (sum over TP of (1 - IoU) /
    (1 - t) + FP + FN) / (TP + FP + FN). oLRP is the smallest over all s; of equal ones the highest
    s counts.
    """
    weight_N, truths_C = _weights(matches, weight_I), _truths(matches, weight_I)
    order_N = np.lexsort((-matches.scores_N, matches.class_N))
    ends = np.searchsorted(matches.class_N[order_N], np.arange(len(truths_C) + 1))
    found = {}
    for c in np.flatnonzero(truths_C):
        mine = order_N[ends[c] : ends[c + 1]]
        found[matches.category_ids[c]] = _lrp_of_class(
            matches.scores_N[mine],
            matches.iou_N[mine],
            weight_N[mine],
            float(truths_C[c]),
            matches.threshold,
        )
    return found


def _lrp_of_class(
    scores_N: np.ndarray, iou_N: np.ndarray, weight_N: np.ndarray, truths: float, threshold: float
) -> LRP:
    """Scores in descending order."""
    right_N = weight_N * (iou_N > 0)
    # Equal scores are kept together or not at all.
    last_U = np.flatnonzero(np.diff(scores_N, append=-np.inf))
    kept_U, right_U = np.cumsum(weight_N)[last_U], np.cumsum(right_N)[last_U]
    distance_U = np.cumsum(right_N * (1 - iou_N))[last_U]
    error_U = (distance_U / (1 - threshold) + (kept_U - right_U) + (truths - right_U)) / (
        truths + kept_U - right_U
    )
    best = int(error_U.argmin()) if len(error_U) else 0
    if not len(error_U) or not right_U[best]:
        return LRP(1.0, None, None, 1.0, None)
    return LRP(
        error=float(error_U[best]),
        localisation=float(distance_U[best] / right_U[best]),
        false_positive=float(1 - right_U[best] / kept_U[best]),
        false_negative=float(1 - right_U[best] / truths),
        threshold=float(scores_N[last_U[best]]),
    )


def mean_lrp(by_class: Mapping[int, LRP]) -> dict[str, float | None]:
    """The mean of oLRP and of each of its parts over the classes where it is defined."""

    def mean(part: str) -> float | None:
        values = [value for lrp in by_class.values() if (value := getattr(lrp, part)) is not None]
        return float(np.mean(values)) if values else None

    return {
        part: mean(part) for part in ("error", "localisation", "false_positive", "false_negative")
    }


def brier_score(matches: Matches, weight_I: np.ndarray | None = None) -> float | None:
    """The mean of (score - right)^2, right being 1 for what is matched and 0 for all else: of "this
    prediction has found an object with an IoU of at least t", t being the matches' threshold. None
    as for D-ECE."""
    weight_N = _weights(matches, weight_I)
    if not matches.are_probabilities or not weight_N.sum():
        return None
    return float(np.average((matches.scores_N - matches.matched_N) ** 2, weights=weight_N))


def auroc(matches: Matches, weight_I: np.ndarray | None = None) -> float | None:
    """The chance that a matched prediction has a higher score than an unmatched one; equal scores
    count half. None without a prediction of either kind."""
    weight_N = _weights(matches, weight_I)
    _, rank_N = np.unique(matches.scores_N, return_inverse=True)
    right_U = np.bincount(rank_N, weight_N * matches.matched_N)
    wrong_U = np.bincount(rank_N, weight_N * ~matches.matched_N)
    if not right_U.sum() or not wrong_U.sum():
        return None
    below_U = np.cumsum(wrong_U) - wrong_U / 2
    return float((right_U * below_U).sum() / (right_U.sum() * wrong_U.sum()))


def measure(
    matches: Mapping[float, Matches], weight_I: np.ndarray | None = None
) -> dict[str, float | None]:
    """All measures by name, of the matches at any overlap, 0.5 and 0.75."""
    any_, half, good = matches[ANY_OVERLAP], matches[0.5], matches[0.75]
    lrp = mean_lrp(optimal_lrp(half, weight_I))
    return {
        "LaECE0": localisation_aware_error(any_, weight_I),
        "LaACE0": localisation_aware_adaptive_error(any_, weight_I),
        "D-ECE50": detection_calibration_error(half, weight_I),
        "oLRP": lrp["error"],
        "oLRP_localisation": lrp["localisation"],
        "oLRP_false_positive": lrp["false_positive"],
        "oLRP_false_negative": lrp["false_negative"],
        "Brier50": brier_score(half, weight_I),
        "Brier75": brier_score(good, weight_I),
        "AUROC50": auroc(half, weight_I),
        "AUROC75": auroc(good, weight_I),
    }


SHOWN = {
    "LaECE0": "LaECE0", "LaACE0": "LaACE0", "D-ECE50": "D-ECE50", "oLRP": "oLRP", "oLRP_localisation": "loc",
    "oLRP_false_positive": "FP", "oLRP_false_negative": "FN", "Brier75": "Brier75", "AUROC50": "AUROC50",
    "AUROC75": "AUROC75",
}  # fmt: skip
"""The measures that the table shows, and its headings."""


def calibration_table(
    measured: Mapping[str, Mapping[str, float | None]], column: str = "score"
) -> Table:
    """A row for each of several named `measure`s."""
    named = any(measured)
    table = number_table(
        "the score as a forecast of the IoU", *SHOWN.values(), first=column if named else None
    )
    for name, values in measured.items():
        shown = [three_decimals(values[key]) for key in SHOWN]
        table.add_row(*([name] if named else []), *shown)
    return table


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: of each bin of scores, how many predictions, their mean score, mean
    IoU and share of matched ones (None for a bin without predictions)."""

    predictions: list[int]
    mean_score: list[float | None]
    mean_iou: list[float | None]
    matched: list[float | None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def reliability(matches: Matches) -> Reliability:
    """The diagram of some predictions (`Matches.select` chooses them; `of_size`, `of_class`).
    Scores must lie in 0..1."""
    if not matches.are_probabilities:
        raise ValueError("reliability: scores outside 0..1 forecast no IoU")
    bin_N = score_bin(matches.scores_N)
    count_B = np.bincount(bin_N, minlength=BINS)

    def means(values_N: np.ndarray) -> list[float | None]:
        sum_B = np.bincount(bin_N, values_N, BINS)
        return [
            float(total / count) if count else None
            for total, count in zip(sum_B, count_B, strict=True)
        ]

    return Reliability(
        count_B.tolist(), means(matches.scores_N), means(matches.iou_N), means(matches.matched_N)
    )


def of_class(matches: Matches, category_id: int) -> Matches:
    """The predictions of one class."""
    return matches.select(matches.class_N == matches.category_ids.index(category_id))


def of_size(matches: Matches, size: str) -> Matches:
    """The predictions whose own masks are "small", "medium" or "large". (Most wrong ones have no
    object to go by.)"""
    above, most = SIZES[size]
    return matches.select((matches.area_N > above) & (matches.area_N <= most))


def _weights(matches: Matches, weight_I: np.ndarray | None) -> np.ndarray:
    return (
        np.ones(len(matches.scores_N))
        if weight_I is None
        else np.asarray(weight_I, float)[matches.image_N]
    )


def _truths(matches: Matches, weight_I: np.ndarray | None) -> np.ndarray:
    """Objects of each class."""
    return (
        matches.truths_IC.sum(axis=0)
        if weight_I is None
        else np.asarray(weight_I) @ matches.truths_IC
    )
