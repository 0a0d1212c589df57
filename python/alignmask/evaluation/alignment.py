"""How well scores follow the quality of masks: Table 2 and Fig. 4 of the paper, for any model's
COCO results file.

Shapes: N predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pycocotools import mask as mask_utils
from scipy.stats import rankdata

from alignmask.evaluation.results_file import (
    AnnotationsLike,
    ResultsLike,
    load_ground_truth,
    load_results,
)
from alignmask.evaluation.tables import number_table, three_decimals

if TYPE_CHECKING:
    from rich.table import Table

IoU = Literal["same class", "any class"]
"""The IoU with the best ground-truth mask of the predicted category, or of any category."""
PER_IMAGE = 100
"""Number of predictions of an image that count, the most confident ones: the paper's "top 2 %" are
10,000 of 5,000 x 100."""
FRACTIONS = (0.02, 0.10)
"""Table 2: the most confident 2 % and 10 %."""
INTERVALS = 10
"""Score intervals of equal width, for the calibration error and the curve of mean IoU."""
NO_TRUTH = 0
"""Takes the place of an annotation's id where no ground-truth mask overlaps the prediction."""


@dataclass(frozen=True)
class ScoreIoU:
    """Score and mask quality of predictions, in the order of the results file."""

    scores_N: np.ndarray
    iou_same_class_N: np.ndarray
    """IoU with the best ground-truth mask of the predicted category in the image; 0 if there is
    none."""
    iou_any_class_N: np.ndarray
    """IoU with the best ground-truth mask of any category."""
    truth_same_class_N: np.ndarray
    truth_any_class_N: np.ndarray
    """Ids (`GroundTruth.annotations`) of those best masks; NO_TRUTH where the IoU is 0."""
    image_ids_N: np.ndarray
    category_ids_N: np.ndarray
    images: int
    """Images of the data set, with or without predictions."""

    def iou(self, kind: IoU) -> np.ndarray:
        return self.iou_same_class_N if kind == "same class" else self.iou_any_class_N

    def with_scores(self, scores_N: np.ndarray) -> ScoreIoU:
        """The same masks under other scores (computing the IoUs is what takes time)."""
        if np.shape(scores_N) != self.scores_N.shape:
            raise ValueError(
                f"with_scores: expected {self.scores_N.shape[0]} scores, got shape "
                f"{np.shape(scores_N)}"
            )
        return replace(self, scores_N=np.asarray(scores_N, float))


@dataclass(frozen=True)
class TopStatistics:
    """Table 2 for the most confident predictions. `None`: not defined (no prediction; for a
    correlation also: fewer than 2 predictions, or all scores or all IoUs alike; for a calibration
    error also: a score outside 0..1)."""

    fraction: float
    predictions: int
    """Predictions that the numbers are over: fraction x 100 x images, or all if there are fewer."""
    mean_score: float | None
    pcc_same_class: float | None
    spearman_same_class: float | None
    calibration_error_same_class: float | None
    mean_iou_same_class: float | None
    pcc_any_class: float | None
    spearman_any_class: float | None
    calibration_error_any_class: float | None
    mean_iou_any_class: float | None


@dataclass(frozen=True)
class AlignmentStatistics:
    images: int
    predictions: int
    top: tuple[TopStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def table(self) -> Table:
        """Table 2 of the paper, with both kinds of IoU."""
        return alignment_table({"": self})


def score_iou_pairs(
    annotations: AnnotationsLike,
    results: ResultsLike,
    *,
    image_ids: Sequence[int] | None = None,
    ignore_unknown: bool = False,
) -> ScoreIoU:
    """Score of each prediction and its IoU with the best ground-truth mask of its image (Fig. 4).

    Crowd annotations are left out: they mark regions, not instances. So a prediction inside a crowd
    counts as whatever its IoU with the instances around is, mostly 0 (COCO's AP ignores such
    predictions). Several predictions may share one ground-truth mask: unlike AP this measures mask
    quality, not duplicates.

    Args:
        annotations, results, image_ids, ignore_unknown: as
            `alignmask.evaluation.metrics.evaluate_results` takes them.
    """
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    if image_ids is not None:
        ground_truth, checked = ground_truth.subset(image_ids), checked.subset(image_ids)
    entries = checked.entries
    same_N, any_N = np.zeros(len(entries)), np.zeros(len(entries))
    truth_same_N, truth_any_N = np.full((2, len(entries)), NO_TRUTH)
    for image_id, index in checked.positions().items():
        targets = [a for a in ground_truth.by_image.get(image_id, []) if not a["iscrowd"]]
        if not targets:
            continue
        iou_NM = mask_utils.iou(
            [entries[n]["segmentation"] for n in index],
            [a["segmentation"] for a in targets],
            [0] * len(targets),
        )
        category_N = np.array([entries[n]["category_id"] for n in index])
        category_M = np.array([a["category_id"] for a in targets])
        id_M = np.array([a["id"] for a in targets])
        any_N[index], truth_any_N[index] = _best(iou_NM, id_M)
        same_N[index], truth_same_N[index] = _best(
            np.where(category_N[:, None] == category_M, iou_NM, 0.0), id_M
        )
    return ScoreIoU(
        scores_N=np.array([e["score"] for e in entries], float),
        iou_same_class_N=same_N,
        iou_any_class_N=any_N,
        truth_same_class_N=truth_same_N,
        truth_any_class_N=truth_any_N,
        image_ids_N=np.array([e["image_id"] for e in entries], np.int64),
        category_ids_N=np.array([e["category_id"] for e in entries], np.int64),
        images=len(ground_truth.sizes),
    )


def _best(iou_NM: np.ndarray, id_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest IoU of each prediction, and the id of the ground-truth mask."""
    best_N = iou_NM.max(axis=1)
    return best_N, np.where(best_N > 0, id_M[iou_NM.argmax(axis=1)], NO_TRUTH)


def top_predictions(pairs: ScoreIoU, fraction: float) -> np.ndarray:
    """Positions of the most confident predictions, best first (equal scores: in the order of the
    results file).

    A fraction is of 100 predictions per image, as in the paper, whose top 2 % on 5,000 images are
    10,000 predictions: the first round(fraction x 100 x images) are taken, among the 100 most
    confident of each image; all of them if there are fewer.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    order = np.argsort(-pairs.scores_N, kind="stable")
    rank_N = rank_within(pairs.image_ids_N, pairs.scores_N)
    return order[rank_N[order] < PER_IMAGE][: round(fraction * PER_IMAGE * pairs.images)]


def rank_within(group_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """How many of its group are better-scored, or equal and earlier."""
    order_N = np.lexsort((-scores_N, group_N))  # stable
    sorted_N = group_N[order_N]
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(len(order_N)) - np.searchsorted(sorted_N, sorted_N)
    return rank_N


def statistics(pairs: ScoreIoU, fractions: Sequence[float] = FRACTIONS) -> AlignmentStatistics:
    """Table 2: correlations of score and mask IoU, calibration error, mean score and mean IoU of
    the most confident predictions."""
    rows = []
    for fraction in fractions:
        top = top_predictions(pairs, fraction)
        score, same, any_ = (
            pairs.scores_N[top],
            pairs.iou_same_class_N[top],
            pairs.iou_any_class_N[top],
        )
        rows.append(
            TopStatistics(
                fraction=fraction,
                predictions=len(top),
                mean_score=_mean(score),
                pcc_same_class=pearson(score, same),
                spearman_same_class=spearman(score, same),
                calibration_error_same_class=calibration_error(score, same),
                mean_iou_same_class=_mean(same),
                pcc_any_class=pearson(score, any_),
                spearman_any_class=spearman(score, any_),
                calibration_error_any_class=calibration_error(score, any_),
                mean_iou_any_class=_mean(any_),
            )
        )
    return AlignmentStatistics(pairs.images, len(pairs.scores_N), tuple(rows))


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Pearson correlation coefficient; None if it is not defined (fewer than 2 values, or one side
    is constant)."""
    if len(x_N) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.corrcoef(x_N, y_N)[0, 1]
    # A spread below float precision.
    return float(correlation) if np.isfinite(correlation) else None


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None as `pearson`."""
    return pearson(rankdata(x_N), rankdata(y_N))


def calibration_error(score_N: np.ndarray, iou_N: np.ndarray) -> float | None:
    """Expected calibration error of the score as a forecast of the IoU (Guo et al. 2017, with the
    IoU in place of the accuracy): |mean score - mean IoU| of each score interval, weighted by its
    share of the predictions.

    Returns None if there are no predictions, or if a score is outside 0..1, so that it cannot be a
    forecast of an IoU.
    """
    if not len(score_N) or score_N.min() < 0 or score_N.max() > 1:
        return None
    difference_I = np.bincount(
        score_interval(score_N), weights=score_N - iou_N, minlength=INTERVALS
    )
    return float(np.abs(difference_I).sum() / len(score_N))


def score_interval(score_N: np.ndarray) -> np.ndarray:
    """Which of the INTERVALS each score lies in: [0, 0.1), [0.1, 0.2), ... [0.9, 1]; the outer ones
    take all beyond."""
    return np.clip(np.floor(score_N * INTERVALS), 0, INTERVALS - 1).astype(np.int64)


def score_span(scores: Iterable[np.ndarray]) -> tuple[float, float]:
    """The range that an axis of these scores has to show: 0 to 1, or more if scores are not
    probabilities."""
    ends = [
        float(end) for score_N in scores if len(score_N) for end in (score_N.min(), score_N.max())
    ]
    return min([0.0, *ends]), max([1.0, *ends])


def oracle_scores(pairs: ScoreIoU) -> np.ndarray:
    """The scores of a perfect ranking: the IoU (same class) for the best mask of each object, and
    IoU - 1 for all other predictions, which therefore come after them.

    AP with the plain IoU as the score is not an upper bound: a good duplicate, which can only be
    counted as wrong, would rank before the only mask of another object.
    """
    iou_N = pairs.iou_same_class_N
    order = np.argsort(-iou_N, kind="stable")
    truth_N, first = np.unique(pairs.truth_same_class_N[order], return_index=True)
    scores_N = iou_N - 1
    best = order[first[truth_N != NO_TRUTH]]
    scores_N[best] = iou_N[best]
    return scores_N


def alignment_table(statistics: dict[str, AlignmentStatistics]) -> Table:
    """Rows of Table 2 for each of several named statistics and each fraction."""
    from rich.table import Column

    title = "the most confident predictions: score and IoU with the best ground-truth mask"
    named = any(statistics)
    names = ("top", "predictions", "mean score", "mean IoU", "PCC", "mean IoU*", "PCC*")
    table = number_table(
        title,
        *names,
        first=Column("score", no_wrap=True) if named else None,
        caption="* ground truth of any class",
    )
    for name, entry in statistics.items():
        for top in entry.top:
            values = (
                top.mean_score,
                top.mean_iou_same_class,
                top.pcc_same_class,
                top.mean_iou_any_class,
                top.pcc_any_class,
            )
            shown = map(three_decimals, values)
            table.add_row(
                *([name] if named else []),
                f"{100 * top.fraction:g} %",
                str(top.predictions),
                *shown,
            )
    return table


def _mean(values_N: np.ndarray) -> float | None:
    return float(values_N.mean()) if len(values_N) else None
