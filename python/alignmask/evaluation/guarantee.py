"""A score threshold with a guarantee: of the predictions above it, at least so many are right, with
so much confidence.

This is Learn then Test (Angelopoulos et al., arXiv 2110.01052): each threshold is a hypothesis "the
share of right predictions is at most what is asked for", thresholds are tested in a fixed order,
and the first that cannot be rejected ends it. The fixed order keeps the chance that any true
hypothesis is rejected below 1 - confidence.

What is assumed: the images are independent draws from what the model will see later. Predictions
within an image may depend on each other in any way: an image is one observation, not its
predictions.

What is guaranteed: with a probability of at least `confidence` over the draw of the images,
E[right] / E[trusted] of a new image is at least `precision`: the share over many new images
together. It is no statement about a single image. If several guarantees are asked for (one for each
class), each holds with this confidence by itself.

Shapes: N predictions, I images, S thresholds, F sizes of the bet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignmask.evaluation.calibration import of_class
from alignmask.evaluation.matches import Matches

MOST_THRESHOLDS = 200
"""Thresholds that are considered: scores that occur, at most so many, the denser the higher they
are."""
BETS = np.linspace(0, 0.98, 50)
"""How much of the capital is put at risk; see `_log_growth`."""


@dataclass(frozen=True)
class Guarantee:
    """What was asked for, and the rule that keeps it. `category_id` None: all classes together."""

    precision: float
    iou: float
    confidence: float
    category_id: int | None
    threshold: float | None
    """The lowest score that is trusted. None: the data cannot support the guarantee."""
    most_per_image: int
    """So many of an image (and class, if there is one) are trusted, the best-scored ones. Without a
    limit one bad image could outweigh any number of good ones, and nothing could be guaranteed."""
    images: int
    """On so many images the thresholds were tested."""
    trusted: int
    right: int
    """Predictions of those images that the rule trusts, and the right ones among them."""

    def describe(self, class_name: str | None = None) -> str:
        """One sentence for the user. class_name: of `category_id`."""
        what = "" if class_name is None else f" of class {class_name}"
        goal = (
            f"{100 * self.precision:g} % of the predictions{what} have an IoU of {self.iou:g} or "
            "more, with "
            f"{100 * self.confidence:g} % confidence"
        )
        if self.threshold is None:
            return f"{self.images} images cannot support that {goal}: more images, or a lower aim"
        return (
            f"score >= {self.threshold:.4g}, the best {self.most_per_image} of an image: {goal} "
            f"({self.right} of "
            f"{self.trusted} on the {self.images} images of the test)"
        )


def find_guarantee(
    chosen: Matches,
    tested: Matches,
    *,
    precision: float,
    confidence: float,
    category_id: int | None = None,
) -> Guarantee:
    """The lowest threshold that keeps the guarantee.

    Right is what is matched at `Matches.threshold`. Predictions in crowd regions are neither right
    nor wrong.

    Args:
        chosen: Of images that decide which thresholds are tested, in which order, and how much is
            bet on each.
        tested: Of other images, which nothing has been chosen on: the tests' data.
        precision, confidence: Above 0 and below 1.
        category_id: One class alone.
    """
    for name, value in (("precision", precision), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(
                f"guarantee: {name}: expected more than 0 and less than 1, got {value:g}"
            )
    if category_id is not None:
        chosen, tested = of_class(chosen, category_id), of_class(tested, category_id)
    per_class = category_id is not None
    threshold, most = None, 0
    candidates = _candidates(chosen, precision, per_class)
    # Few predictions have the highest scores, and prove nothing. The first to be tested is where
    # `chosen` has the strongest evidence; then thresholds go down.
    growth_S = [log_growth for _, _, _, log_growth in candidates]
    start = int(np.argmax(growth_S)) if candidates else 0
    for score, limit, bet, _ in candidates[start:]:
        gain_I = _gains(tested, score, limit, precision, per_class)
        if np.log1p(bet * gain_I / (precision * limit)).sum() < -np.log(1 - confidence):
            break
        threshold, most = score, limit
    kept_N = (
        np.zeros(len(tested.scores_N), bool)
        if threshold is None
        else _kept(tested, threshold, most, per_class)
    )
    return Guarantee(
        precision=precision,
        iou=tested.threshold,
        confidence=confidence,
        category_id=category_id,
        threshold=threshold,
        most_per_image=most,
        images=len(tested.image_ids),
        trusted=int(kept_N.sum()),
        right=int((kept_N & tested.matched_N).sum()),
    )


def trusted(
    guarantees: Sequence[Guarantee], scores_N: np.ndarray, category_N: np.ndarray
) -> np.ndarray:
    """bool [N]: which predictions of one image, best first, the rules trust."""
    trusted_N = np.zeros(len(scores_N), bool)
    for guarantee in guarantees:
        mine_N = np.full(len(scores_N), True)
        if guarantee.category_id is not None:
            mine_N = np.asarray(category_N) == guarantee.category_id
        if guarantee.threshold is not None:
            within_N = np.cumsum(mine_N) <= guarantee.most_per_image
            trusted_N |= mine_N & within_N & (np.asarray(scores_N) >= guarantee.threshold)
    return trusted_N


def _candidates(
    matches: Matches, precision: float, per_class: bool
) -> list[tuple[float, int, float, float]]:
    """Thresholds, the highest first: (score, limit of an image, bet, growth of the capital's
    logarithm)."""
    scores_N = np.sort(matches.scores_N)[::-1]
    if not len(scores_N):
        return []
    picks = np.geomspace(1, len(scores_N), MOST_THRESHOLDS).round().astype(int) - 1
    candidates = []
    for score in dict.fromkeys(scores_N[picks].tolist()):
        rank_N = matches.class_rank_N if per_class else matches.rank_N
        limit = int(rank_N[matches.scores_N >= score].max()) + 1
        growth_F = _log_growth(
            _gains(matches, score, limit, precision, per_class) / (precision * limit)
        )
        candidates.append((score, limit, float(BETS[growth_F.argmax()]), float(growth_F.max())))
    return candidates


def _kept(matches: Matches, score: float, limit: int, per_class: bool) -> np.ndarray:
    rank_N = matches.class_rank_N if per_class else matches.rank_N
    return (matches.scores_N >= score) & (rank_N < limit)


def _gains(
    matches: Matches, score: float, limit: int, precision: float, per_class: bool
) -> np.ndarray:
    """[I]: the sum, over the trusted predictions of an image, of right - precision. At least
    -precision x limit."""
    kept_N = _kept(matches, score, limit, per_class)
    return np.bincount(
        matches.image_N[kept_N],
        matches.matched_N[kept_N] - precision,
        minlength=len(matches.image_ids),
    )


def _log_growth(gain_I: np.ndarray) -> np.ndarray:
    """[F]: the logarithm of the capital after a bet on every image, for each size of the bet.

    A test by betting (Waudby-Smith & Ramdas, JRSS B 2024): the capital starts at 1 and is
    multiplied by 1 + bet x gain for every image; gains are at least -1, so it stays positive. If
    the mean gain is 0 or less, its expectation is at most 1, and so it exceeds 1 / (1 - confidence)
    with a probability of at most 1 - confidence (Markov). The bet must not depend on the images of
    the test: it is the best one on the other images, and one more on which all is wrong.
    """
    return np.log1p(BETS[:, None] * np.append(gain_I, -1.0)).sum(axis=1)
