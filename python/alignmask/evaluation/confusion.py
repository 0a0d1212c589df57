"""Which classes a model takes for one another: the confusion matrix of what it shows.

Shapes: C classes, N predictions, M objects of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as mask_utils

from alignmask.config import SHOWN_SCORE
from alignmask.evaluation.alignment import NO_TRUTH
from alignmask.evaluation.matches import Matches
from alignmask.evaluation.metrics import unique_names
from alignmask.evaluation.results_file import GroundTruth, Results
from alignmask.evaluation.tables import number_table

if TYPE_CHECKING:
    from rich.table import Table

CONFUSION_IOU = 0.5
NOTHING = "nothing"
FEW = 6
"""A matrix of so many classes at most is printed."""


@dataclass(frozen=True)
class Confusion:
    """How many objects of each class were found as which class.

    First every object goes to the prediction that COCO matches it to, which is of its own class.
    Then the other predictions choose, the best-scored first: each takes the free object of another
    class that it overlaps most, if the IoU is at least the threshold. What is left over has no
    partner: missed objects, and predictions on nothing, which second masks of a found object are,
    too. Predictions that only a crowd region covers, of whatever class, are left out.
    """

    names: tuple[str, ...]
    """The classes."""
    counts: tuple[tuple[int, ...], ...]
    """C + 1 rows, the classes of the objects, of C + 1 columns, those of the predictions; the last
    ones stand for nothing."""
    iou: float
    score: float
    """Predictions with a lower score are left out."""

    @property
    def counts_CC(self) -> np.ndarray:
        """int64 [C + 1, C + 1]"""
        return np.array(self.counts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "iou": self.iou,
            "score": self.score,
            "rows": "objects",
            "columns": "predictions",
            "names": [*self.names, NOTHING],
            "counts": [list(row) for row in self.counts],
        }

    def table(self) -> Table:
        """For few classes: the matrix itself."""
        title = f"objects (lines) found as (columns), score >= {self.score:g}, IoU >= {self.iou:g}"
        table = number_table(title, *self.names, NOTHING, first="")
        for name, counts in zip((*self.names, NOTHING), self.counts, strict=True):
            table.add_row(name, *map(str, counts))
        return table


def confusion(
    ground_truth: GroundTruth, results: Results, matches: Matches, score: float = SHOWN_SCORE
) -> Confusion:
    """The confusion matrix of the predictions with at least that score.

    Args:
        matches: Of these results, at the IoU that counts as found.
    """
    classes = len(matches.category_ids)
    class_of = {category_id: c for c, category_id in enumerate(matches.category_ids)}
    counts_CC = np.zeros((classes + 1, classes + 1), np.int64)
    shown = matches.select(matches.scores_N >= score)
    found_N = shown.truth_N != NO_TRUTH
    np.add.at(counts_CC, (shown.class_N[found_N], shown.class_N[found_N]), 1)
    taken = set(shown.truth_N[found_N].tolist())
    left_over = np.flatnonzero(~found_N)
    of_image: dict[int, list[int]] = {}
    for n in left_over[np.argsort(-shown.scores_N[left_over], kind="stable")].tolist():
        of_image.setdefault(matches.image_ids[shown.image_N[n]], []).append(n)
    for image_id, mine in of_image.items():
        truths = ground_truth.by_image.get(image_id, [])
        overlap_NM = np.zeros((len(mine), len(truths)))
        if truths:
            overlap_NM = mask_utils.iou(
                [results.entries[shown.position_N[n]]["segmentation"] for n in mine],
                [truth["segmentation"] for truth in truths],
                [truth["iscrowd"] for truth in truths],
            )
        crowd_M = np.array([truth["iscrowd"] for truth in truths], bool)
        class_M = np.array([class_of[truth["category_id"]] for truth in truths], np.int64)
        free_M = ~crowd_M & np.array([truth["id"] not in taken for truth in truths], bool)
        for n, overlap_M in zip(mine, overlap_NM, strict=True):
            predicted = shown.class_N[n]
            can_M = free_M & (class_M != predicted) & (overlap_M >= matches.threshold)
            if can_M.any():
                best = int(np.where(can_M, overlap_M, -1).argmax())
                free_M[best] = False
                taken.add(truths[best]["id"])
                counts_CC[class_M[best], predicted] += 1
            elif not (crowd_M & (overlap_M >= matches.threshold)).any():
                counts_CC[classes, predicted] += 1
    for annotation in ground_truth.annotations:
        if not annotation["iscrowd"] and annotation["id"] not in taken:
            counts_CC[class_of[annotation["category_id"]], classes] += 1
    names = tuple(unique_names(ground_truth.categories).values())
    return Confusion(names, tuple(map(tuple, counts_CC.tolist())), matches.threshold, score)
