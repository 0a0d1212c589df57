"""The score from which on predictions are best kept: where F1 at an IoU of 0.5 is largest.

Shapes: N predictions, U different scores, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alignmask.evaluation.matches import Matches

F1_IOU = 0.5


@dataclass(frozen=True)
class BestF1:
    """The largest F1 that a threshold reaches; of equal ones the highest threshold counts."""

    threshold: float | None
    """Predictions with this score or more are kept. None: no prediction is right."""
    f1: float
    """2 x right / (kept + objects); -1 without objects."""
    precision: float | None
    recall: float | None
    """None, as the threshold."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Thresholds:
    """One for all classes together, and one for each class."""

    pooled: BestF1
    by_class: dict[str, BestF1]
    """By category id, as text (JSON has no other keys); classes without objects are left out."""

    def of(self, category_N: np.ndarray) -> np.ndarray:
        """float64 [N]: the threshold for predictions of these categories: that of their class, or
        the one of all classes where the class has none.

        Raises ValueError if there is none at all.
        """
        pooled = self.pooled.threshold
        if pooled is None:
            raise ValueError("best F1: no prediction was right, so there is no threshold")
        own = {
            int(category_id): best.threshold
            for category_id, best in self.by_class.items()
            if best.threshold is not None
        }
        return np.array([own.get(int(category_id), pooled) for category_id in category_N], float)


def best_thresholds(matches: Matches) -> Thresholds:
    """The thresholds with the largest F1.

    Right is what is matched; predictions in crowd regions are neither right nor wrong.

    Args:
        matches: At the IoU that makes a prediction right.
    """
    truths_C = matches.truths_IC.sum(axis=0)
    by_class = {
        str(category_id): _best(matches.select(matches.class_N == c), int(truths_C[c]))
        for c, category_id in enumerate(matches.category_ids)
        if truths_C[c]
    }
    return Thresholds(_best(matches, int(truths_C.sum())), by_class)


def f1_at(matches: Matches, threshold_N: np.ndarray | float) -> float | None:
    """F1 over all classes if the predictions with at least these scores are kept; None if there is
    neither object nor prediction."""
    kept_N = matches.scores_N >= threshold_N
    total = int(kept_N.sum() + matches.truths_IC.sum())
    return 2 * int((kept_N & matches.matched_N).sum()) / total if total else None


def _best(matches: Matches, truths: int) -> BestF1:
    order_N = np.argsort(-matches.scores_N, kind="stable")
    scores_N, right_N = matches.scores_N[order_N], np.cumsum(matches.matched_N[order_N])
    # Equal scores are kept together or not at all.
    last_U = np.flatnonzero(np.diff(scores_N, append=-np.inf))
    kept_U, right_U = last_U + 1, right_N[last_U]
    if not truths:
        return BestF1(None, -1.0, None, None)
    if not len(right_U) or not right_U[-1]:
        return BestF1(None, 0.0, None, None)
    f1_U = 2 * right_U / (kept_U + truths)
    best = int(f1_U.argmax())
    return BestF1(
        threshold=float(scores_N[last_U[best]]),
        f1=float(f1_U[best]),
        precision=float(right_U[best] / kept_U[best]),
        recall=float(right_U[best] / truths),
    )
