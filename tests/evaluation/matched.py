"""Matches made by hand, for the tests of what is measured on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignmask.evaluation.matches import Matches, rank_within

CATEGORIES = (3, 7, 20)


def made(
    scores: Sequence[float],
    ious: Sequence[float],
    images: Sequence[int],
    classes: Sequence[int],
    truths: Sequence[Sequence[int]],
    threshold: float = 0.5,
) -> Matches:
    """Matches without masks."""
    scores_N, image_N, class_N = (
        np.array(scores, float),
        np.array(images, np.int64),
        np.array(classes, np.int64),
    )
    return Matches(
        threshold=threshold,
        scores_N=scores_N,
        iou_N=np.array(ious, float),
        truth_N=np.where(np.array(ious) > 0, np.arange(1, len(scores) + 1), 0),
        image_N=image_N,
        class_N=class_N,
        rank_N=rank_within(image_N, scores_N),
        class_rank_N=rank_within(10 * image_N + class_N, scores_N),
        area_N=np.array([400 * (n + 1) for n in range(len(scores))], float),
        position_N=np.arange(len(scores)),
        truths_IC=np.array(truths, np.int64),
        image_ids=tuple(range(10, 10 + len(truths))),
        category_ids=CATEGORIES[: len(truths[0])],
        left_out={},
    )
