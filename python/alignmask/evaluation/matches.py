"""Which predictions found an object, and how well: COCO's one-to-one matching, one line for each
prediction.

Shapes: N predictions, I images, C classes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignmask.config import OFFICIAL_LIMIT
from alignmask.evaluation.alignment import NO_TRUTH, rank_within
from alignmask.evaluation.metrics import official_tool
from alignmask.evaluation.results_file import (
    AnnotationsLike,
    GroundTruth,
    ResultsLike,
    load_ground_truth,
    load_results,
)

ANY_OVERLAP = 0.0
"""The IoU threshold at which every true overlap can be a match."""


@dataclass(frozen=True)
class Matches:
    """The predictions of a results file, matched to ground truth at one IoU threshold.

    In every image and class the predictions choose in the order of their scores, each the free
    ground-truth mask with which its IoU is largest, if it is at least the threshold: so a second
    mask of an object is not matched. Predictions that only a crowd region covers are neither right
    nor wrong, and left out; so are those of a class in an image that come after as many as are to
    be matched.
    """

    threshold: float
    scores_N: np.ndarray
    iou_N: np.ndarray
    """IoU with the matched ground truth; 0 for a prediction without one."""
    truth_N: np.ndarray
    """Id (`GroundTruth.annotations`) of that ground truth; NO_TRUTH without one."""
    image_N: np.ndarray
    class_N: np.ndarray
    """Indices into `image_ids` and `category_ids`."""
    area_N: np.ndarray
    """Pixels of the predicted mask."""
    rank_N: np.ndarray
    class_rank_N: np.ndarray
    """How many predictions of its image, and of its image and class, are better-scored (of equal
    ones: come earlier). Predictions that are left out count."""
    position_N: np.ndarray
    """Where the prediction is in the results file; ascending."""
    truths_IC: np.ndarray
    """Number of objects, without crowd regions."""
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    left_out: dict[str, int]
    """Predictions that are not among the N, counted by reason."""

    @property
    def matched_N(self) -> np.ndarray:
        return self.iou_N > 0

    @property
    def are_probabilities(self) -> bool:
        """Whether all scores lie in 0..1. Others forecast nothing that could be compared with an
        IoU."""
        return not len(self.scores_N) or bool(self.scores_N.min() >= 0 and self.scores_N.max() <= 1)

    def with_scores(self, scores_N: np.ndarray) -> Matches:
        """The same matches under other scores, which must not have changed the ranking within a
        class and image."""
        if np.shape(scores_N) != self.scores_N.shape:
            raise ValueError(
                f"with_scores: expected {len(self.scores_N)} scores, got shape {np.shape(scores_N)}"
            )
        return replace(self, scores_N=np.asarray(scores_N, np.float64))

    def select(self, chosen_N: np.ndarray) -> Matches:
        """Some of the predictions (bool [N]); the ground truth stays."""
        columns = (
            "scores_N",
            "iou_N",
            "truth_N",
            "image_N",
            "class_N",
            "area_N",
            "rank_N",
            "class_rank_N",
            "position_N",
        )
        return replace(self, **{name: getattr(self, name)[chosen_N] for name in columns})

    def subset(self, image_ids: Sequence[int]) -> Matches:
        """Predictions and ground truth of some of the images."""
        index = {image_id: i for i, image_id in enumerate(self.image_ids)}
        if unknown := [image_id for image_id in image_ids if image_id not in index]:
            raise ValueError(f"no image has id {unknown[0]}")
        chosen_S = np.array([index[image_id] for image_id in image_ids], np.int64)
        new_I = np.full(len(self.image_ids), -1)
        new_I[chosen_S] = np.arange(len(chosen_S))
        kept = self.select(new_I[self.image_N] >= 0)
        return replace(
            kept,
            image_N=new_I[kept.image_N],
            image_ids=tuple(image_ids),
            truths_IC=self.truths_IC[chosen_S],
        )


def match(
    annotations: AnnotationsLike,
    results: ResultsLike,
    thresholds: Sequence[float] = (ANY_OVERLAP, 0.5, 0.75),
    *,
    ignore_unknown: bool = False,
    per_class: int = OFFICIAL_LIMIT,
) -> Mapping[float, Matches]:
    """Matches predictions to ground truth, with the official COCO tool: area range "all".

    A threshold of 0 means an IoU of more than 0. (The official tool itself would match masks that
    do not touch, so that a false alarm could take an object away from the mask that covers it.)

    Args:
        annotations, results, ignore_unknown: As `alignmask.evaluation.metrics.evaluate_results`
            takes them.
        thresholds: IoU thresholds; each is matched by itself.
        per_class: Predictions of a class in an image that are matched, the best-scored ones; by
            default as many as count in COCO's AP.
    Returns:
        The matches at each threshold.
    """
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth, ignore_unknown)
    tool = official_tool(ground_truth, checked)
    tool.params.iouThrs = np.maximum(thresholds, np.finfo(np.float64).tiny)
    tool.params.areaRng, tool.params.areaRngLbl = [[0, 1e10]], ["all"]
    tool.params.maxDets = [per_class]
    with contextlib.redirect_stdout(io.StringIO()):
        tool.evaluate()

    count = len(checked.entries)
    iou_TN, ignored_TN = (
        np.zeros((len(thresholds), count)),
        np.zeros((len(thresholds), count), bool),
    )
    truth_TN = np.full((len(thresholds), count), NO_TRUTH)
    area_N, ranked_N = np.zeros(count), np.zeros(count, bool)
    for found in tool.evalImgs:
        if found is None or not found["dtIds"]:
            continue
        place = found["image_id"], found["category_id"]
        position_D = np.array(found["dtIds"]) - 1  # the tool numbers the entries from 1
        ranked_N[position_D] = True
        ignored_TN[:, position_D] = found["dtIgnore"]
        iou_DG = np.asarray(tool.ious[place]).reshape(len(position_D), -1)
        column = {truth["id"]: g for g, truth in enumerate(tool._gts[place])}
        for t, d in zip(*np.nonzero(found["dtMatches"]), strict=True):
            truth = int(found["dtMatches"][t, d])
            if not found["dtIgnore"][t, d]:
                truth_TN[t, position_D[d]] = truth
                iou_TN[t, position_D[d]] = iou_DG[d, column[truth]]
    for number, entry in tool.cocoDt.anns.items():
        area_N[number - 1] = entry["area"]

    image_ids, category_ids = tuple(ground_truth.sizes), tuple(ground_truth.categories)
    image = {image_id: i for i, image_id in enumerate(image_ids)}
    class_ = {category_id: c for c, category_id in enumerate(category_ids)}
    scores_N = np.array([entry["score"] for entry in checked.entries], np.float64)
    image_N = np.array([image[entry["image_id"]] for entry in checked.entries], np.int64)
    class_N = np.array([class_[entry["category_id"]] for entry in checked.entries], np.int64)
    whole = {
        "scores_N": scores_N,
        "image_N": image_N,
        "class_N": class_N,
        "area_N": area_N,
        "rank_N": rank_within(image_N, scores_N),
        "class_rank_N": rank_within(image_N * len(class_) + class_N, scores_N),
        "position_N": np.arange(count),
    }
    truths_IC = _truths(ground_truth, image, class_)
    beyond = int((~ranked_N).sum())
    return {
        threshold: Matches(
            threshold=threshold,
            iou_N=iou_N,
            truth_N=truth_N,
            truths_IC=truths_IC,
            image_ids=image_ids,
            category_ids=category_ids,
            left_out={
                "in a crowd region": int(ignored_N.sum()),
                f"after the best {per_class}": beyond,
            },
            **whole,
        ).select(ranked_N & ~ignored_N)
        for threshold, iou_N, truth_N, ignored_N in zip(
            thresholds, iou_TN, truth_TN, ignored_TN, strict=True
        )
    }


def _truths(
    ground_truth: GroundTruth, image: Mapping[int, int], class_: Mapping[int, int]
) -> np.ndarray:
    truths_IC = np.zeros((len(image), len(class_)), np.int64)
    for annotation in ground_truth.annotations:
        if not annotation["iscrowd"]:
            truths_IC[image[annotation["image_id"]], class_[annotation["category_id"]]] += 1
    return truths_IC
