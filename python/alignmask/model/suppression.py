"""Non-maximum suppression on masks: of several predictions of one class that cover each other, the
best stays.

N predictions of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from alignmask.config import Suppression


def suppress(
    scores_N: np.ndarray, iou_NN: np.ndarray, mode: Suppression, threshold: float
) -> np.ndarray:
    """Greedy suppression: new scores of predictions whose pairwise IoUs are known.

    The predictions are visited from the best to the worst; equal scores keep their order. Each one
    that is visited acts on all later ones whose IoU with it is above the threshold. "hard" removes
    them. "soft" multiplies their scores by 1 - IoU, and the next to be visited is the best of the
    rest (Bodla et al., Soft-NMS, 2017, linear form).

    Args:
        scores_N: Scores, none of them negative.
        iou_NN: IoU of each pair; 0 for pairs that must not act on each other, such as those of
            different classes.
        mode: "off" changes nothing.
        threshold: IoU, 0 to 1.
    Returns:
        float64 [N]: the new scores. A removed prediction has -1.
    """
    new_N = np.array(scores_N, np.float64)
    if mode == "off":
        return new_N
    waiting_N = np.ones(len(new_N), bool)
    for _ in range(len(new_N)):
        if not waiting_N.any():
            break
        best = int(np.where(waiting_N, new_N, -np.inf).argmax())
        waiting_N[best] = False
        covered_N = waiting_N & (iou_NN[best] > threshold)
        if mode == "hard":
            new_N[covered_N] = -1
            waiting_N &= ~covered_N
        else:
            new_N[covered_N] *= 1 - iou_NN[best, covered_N]
    return new_N


def iou_within_classes(rles: Sequence[dict[str, Any]], classes_N: np.ndarray) -> np.ndarray:
    """The IoU of each pair of masks of one class, exact: pixels are counted. Pairs of two classes
    have 0.

    Args:
        rles: COCO's compressed RLE of each mask.
        classes_N: Class of each mask.
    Returns:
        float64 [N, N], symmetric.
    """
    if not rles:
        return np.zeros((0, 0))
    iou_NN = mask_utils.iou(list(rles), list(rles), [0] * len(rles))
    return np.where(classes_N[:, None] == classes_N, iou_NN, 0.0)


def without_second_masks(
    scores_N: np.ndarray,
    classes_N: np.ndarray,
    rles: Sequence[dict[str, Any]],
    boxes_N4: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Which predictions hard suppression keeps, as `suppress` of `iou_within_classes`, but without
    the IoU of every pair: of an image with ten thousand instances these would take 800 MB.

    Args:
        boxes_N4: x1, y1, x2, y2 around the masks; only masks whose boxes meet are compared.
    Returns:
        bool [N].
    """
    kept_N = np.ones(len(rles), bool)
    order = np.argsort(-np.asarray(scores_N, np.float64), kind="stable")
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = np.arange(len(order))
    for n in order.tolist():
        if not kept_N[n]:
            continue
        x1, y1, x2, y2 = boxes_N4[n]
        rival_N = kept_N & (rank_N > rank_N[n]) & (classes_N == classes_N[n])
        rival_N &= (boxes_N4[:, 0] < x2) & (boxes_N4[:, 2] > x1)
        rival_N &= (boxes_N4[:, 1] < y2) & (boxes_N4[:, 3] > y1)
        rivals = np.flatnonzero(rival_N)
        if len(rivals):
            iou_R = mask_utils.iou(
                [rles[n]], [rles[r] for r in rivals.tolist()], [0] * len(rivals)
            )[0]
            kept_N[rivals[iou_R > threshold]] = False
    return kept_N
