"""Second masks of one object: their share of a model's confident predictions, and predictions
without them.

A prediction is a duplicate if its mask overlaps that of a better-scored prediction of the same
image and class by an IoU of more than 0.5. No ground truth is needed to see that.

Shapes: N predictions, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from alignmask.config import DUPLICATE_IOU, SHOWN_SCORE, Suppression
from alignmask.evaluation.alignment import FRACTIONS, ScoreIoU, top_predictions
from alignmask.evaluation.results_file import Results
from alignmask.evaluation.tables import number_table
from alignmask.model.suppression import iou_within_classes, suppress

if TYPE_CHECKING:
    from rich.table import Table

REMOVED = "duplicates"
"""The reason in `Results.ignored` for what suppression removed."""


def rival_pairs(results: Results, iou: float = DUPLICATE_IOU) -> np.ndarray:
    """Pairs of predictions of one image and class whose masks overlap by more than `iou`.

    Returns:
        int64 [P, 2]: positions in `results.entries`; the first of a pair is the smaller one.
    """
    found = [np.zeros((0, 2), np.int64)]
    for index_N in results.positions().values():
        iou_NN = np.triu(_iou(results, index_N), 1)
        found.append(index_N[np.argwhere(iou_NN > iou)])
    return np.concatenate(found)


def duplicates(scores_N: np.ndarray, rivals_P2: np.ndarray) -> np.ndarray:
    """bool [N]: which predictions have a better-scored rival. Of equal scores the earlier
    prediction counts as the better."""
    first_P, second_P = rivals_P2.T
    worse_P = np.where(scores_N[second_P] > scores_N[first_P], first_P, second_P)
    duplicate_N = np.zeros(len(scores_N), bool)
    duplicate_N[worse_P] = True
    return duplicate_N


@dataclass(frozen=True)
class Duplicates:
    """How many of some predictions are duplicates."""

    predictions: int
    duplicates: int

    @property
    def share(self) -> float | None:
        """None if there is no prediction."""
        return self.duplicates / self.predictions if self.predictions else None

    def as_dict(self) -> dict[str, float | None]:
        """JSON-ready."""
        return {"predictions": self.predictions, "duplicates": self.duplicates, "share": self.share}


SHOWN = f"score >= {SHOWN_SCORE:g}"
TOP = {f"top {100 * fraction:g} %": fraction for fraction in FRACTIONS}


def count_duplicates(pairs: ScoreIoU, rivals_P2: np.ndarray) -> dict[str, Duplicates]:
    """Duplicates among the predictions that are shown by default, and among the most confident
    (`top_predictions`)."""
    duplicate_N = duplicates(pairs.scores_N, rivals_P2)
    chosen = {SHOWN: pairs.scores_N >= SHOWN_SCORE}
    chosen |= {name: top_predictions(pairs, fraction) for name, fraction in TOP.items()}
    return {
        name: Duplicates(len(duplicate_N[some]), int(duplicate_N[some].sum()))
        for name, some in chosen.items()
    }


def count_by_class(pairs: ScoreIoU, rivals_P2: np.ndarray) -> dict[int, Duplicates]:
    """Duplicates among the predictions that are shown by default, by category id."""
    duplicate_N = duplicates(pairs.scores_N, rivals_P2)
    shown_N = pairs.scores_N >= SHOWN_SCORE
    return {
        int(category_id): Duplicates(int(mine_N.sum()), int(duplicate_N[mine_N].sum()))
        for category_id in np.unique(pairs.category_ids_N[shown_N])
        for mine_N in [shown_N & (pairs.category_ids_N == category_id)]
    }


def duplicates_table(
    counted: Mapping[str, Mapping[str, Duplicates]], column: str = "score"
) -> Table:
    """A row for each of several named counts (the one of a single score has no name)."""
    title = "second masks of one object, in % of the predictions (their number)"
    named = any(counted)
    table = number_table(title, SHOWN, *TOP, first=column if named else None)
    for name, row in counted.items():
        shown = [
            f"{'-' if entry.share is None else f'{100 * entry.share:.1f}'} ({entry.predictions})"
            for entry in row.values()
        ]
        table.add_row(*([name] if named else []), *shown)
    return table


def suppress_duplicates(results: Results, mode: Suppression, iou: float = DUPLICATE_IOU) -> Results:
    """The predictions after non-maximum suppression within each image and class; see
    `model.suppression.suppress`.

    The order of the file stays. Removed predictions are counted in `Results.ignored`.

    Raises:
        ValueError: soft suppression of scores below 0.
    """
    scores_N = np.array([entry["score"] for entry in results.entries], np.float64)
    if mode == "off":
        return results
    if mode == "soft" and (lowest := scores_N.min(initial=0.0)) < 0:
        raise ValueError(
            f"{results.source}: soft suppression multiplies scores and needs them to be 0 or more, "
            f"got {lowest:g}"
        )
    # Only the order counts, whatever their signs.
    new_N = scores_N if mode == "soft" else rankdata(scores_N)
    for index_N in results.positions().values():
        new_N[index_N] = suppress(new_N[index_N], _iou(results, index_N), mode, iou)
    entries = [
        {**entry, "score": entry["score"] if mode == "hard" else score}
        for entry, score in zip(results.entries, new_N.tolist(), strict=True)
        if score >= 0
    ]
    removed = len(results.entries) - len(entries)
    counted = {REMOVED: removed} if removed else {}
    return replace(results, entries=entries, ignored={**results.ignored, **counted})


def _iou(results: Results, index_N: np.ndarray) -> np.ndarray:
    entries = [results.entries[n] for n in index_N]
    return iou_within_classes(
        [e["segmentation"] for e in entries], np.array([e["category_id"] for e in entries])
    )
