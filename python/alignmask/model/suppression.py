"""Non-maximum suppression on masks: of several predictions of one class that cover each other, the
best stays.

N predictions of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_utils

Suppression = Literal["off", "hard", "soft"]


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
