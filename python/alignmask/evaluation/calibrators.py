"""Scores that say which IoU to expect: fitted on some images, stored as JSON beside a checkpoint.

The target is the IoU with the object that a prediction is matched to one to one (`matches.match` at
any overlap), the one that LaECE_0 measures: 0 for a false alarm, and 0 for a second mask of an
object, however good a mask it is. A user who counts objects, or takes every trusted mask for one,
is misled by it just as by a false alarm; and the best forecast of a target in which it counted as
good could not tell the two apart.

All maps are non-decreasing. So within a class the ranking stays, but the isotonic map (and any that
is cut off at 0 or 1) gives equal values to different scores: rank by the score, and read the
quality as a forecast.

Shapes: N predictions, U different scores, K knots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dacite
import numpy as np
from scipy.optimize import isotonic_regression, minimize

from alignmask._files import write_json
from alignmask.config import FEWEST, CalibrationMethod, Suppression
from alignmask.evaluation.best_f1 import Thresholds
from alignmask.evaluation.guarantee import Guarantee, trusted
from alignmask.evaluation.matches import Matches

MADE_BY = "alignmask calibrate"
SMALLEST = 1e-6
"""Scores are kept so far from 0 and 1 where their logit is taken."""


@dataclass(frozen=True)
class ScoreMap:
    """A non-decreasing function from scores to the expected IoU, in 0..1."""

    method: CalibrationMethod
    slope: float = 1.0
    intercept: float = 0.0
    """linear: slope x score + intercept, cut off at 0 and 1. platt, temperature: of the logits of
    score and IoU."""
    scores_K: list[float] = field(default_factory=list)
    iou_K: list[float] = field(default_factory=list)
    """isotonic: the values at some scores; straight lines between them, constant outside."""

    def __call__(self, scores_N: np.ndarray) -> np.ndarray:
        scores_N = np.asarray(scores_N, np.float64)
        if self.method == "isotonic":
            return np.interp(scores_N, self.scores_K, self.iou_K)
        if self.method == "linear":
            return np.clip(self.slope * scores_N + self.intercept, 0, 1)
        return _sigmoid(self.slope * _logit(scores_N) + self.intercept)


@dataclass(frozen=True)
class Fit:
    """What a calibration was fitted on: enough to do it again."""

    annotations: str
    annotations_sha256: str
    seed: int
    images: int
    """The half of the images that it was fitted on, ..."""
    held_out_images: int
    """... and the other half, for reports and guarantees."""
    fewest: int
    score: str
    """What kind of score was fitted: the score mode of the model, or "file"."""
    suppression: Suppression = "off"
    """What was done to second masks before anything was fitted, tested or counted."""
    tile: int | None = None
    """Side of the tiles in which images were predicted, in pixels; None: as a whole."""


@dataclass(frozen=True)
class Calibration:
    """Maps from score to expected IoU, and guarantees."""

    method: CalibrationMethod
    pooled: ScoreMap
    """For the classes that have no map of their own."""
    by_class: dict[str, ScoreMap]
    """By category id, as text (JSON has no other keys)."""
    fit: Fit
    guarantees: list[Guarantee] = field(default_factory=list)
    best_f1: Thresholds | None = None
    """The thresholds with the largest F1 on the images that were fitted on."""
    made_by: str = MADE_BY

    def quality(self, scores_N: np.ndarray, category_N: np.ndarray) -> np.ndarray:
        """float64 [N]: the expected IoU of predictions with these scores and category ids."""
        scores_N, category_N = np.asarray(scores_N, np.float64), np.asarray(category_N)
        quality_N = self.pooled(scores_N)
        for category_id, own in self.by_class.items():
            mine_N = category_N == int(category_id)
            quality_N[mine_N] = own(scores_N[mine_N])
        return quality_N

    def trusted(self, scores_N: np.ndarray, category_N: np.ndarray) -> np.ndarray:
        """bool [N]: which predictions of one image, best first, a guarantee covers."""
        return trusted(self.guarantees, scores_N, category_N)

    def calibrate(self, matches: Matches) -> Matches:
        """The matches with the quality in place of the score."""
        return matches.with_scores(
            self.quality(matches.scores_N, np.array(matches.category_ids)[matches.class_N])
        )


def split_images(image_ids: Sequence[int], seed: int = 0) -> tuple[list[int], list[int]]:
    """Two halves of the images, drawn by id whatever their order: one to fit on, one to report
    on."""
    if len(image_ids) < 2:
        raise ValueError(
            f"calibration needs 2 images or more, one to fit on and one to report on; got "
            f"{len(image_ids)}"
        )
    mixed = np.random.default_rng(seed).permutation(sorted(image_ids)).tolist()
    half = (len(mixed) + 1) // 2
    return sorted(mixed[:half]), sorted(mixed[half:])


def fit_calibration(
    matches: Matches, method: CalibrationMethod, fit: Fit, fewest: int = FEWEST
) -> Calibration:
    """Fits a map for every class with at least `fewest` predictions, and one for all classes
    together.

    Args:
        matches: At any overlap, of the half of the images that is fitted on.
    Raises:
        ValueError: No prediction, or scores outside 0..1.
    """
    if not len(matches.scores_N):
        raise ValueError("calibration: there is no prediction to fit on")
    if not matches.are_probabilities:
        raise ValueError(
            f"calibration: scores must lie in 0..1, got {matches.scores_N.min():g} to "
            f"{matches.scores_N.max():g}"
        )
    own = {}
    for c, category_id in enumerate(matches.category_ids):
        mine_N = matches.class_N == c
        if mine_N.sum() >= fewest:
            own[str(category_id)] = fit_map(method, matches.scores_N[mine_N], matches.iou_N[mine_N])
    return Calibration(method, fit_map(method, matches.scores_N, matches.iou_N), own, fit)


def fit_map(method: CalibrationMethod, scores_N: np.ndarray, iou_N: np.ndarray) -> ScoreMap:
    """The non-decreasing map of a kind that fits best: linear and isotonic by least squares, platt
    (two parameters) and temperature (one) by cross-entropy with the IoU as a soft target."""
    if method == "isotonic":
        return _isotonic(scores_N, iou_N)
    if method == "linear":
        from_mean_N = scores_N - scores_N.mean()
        spread = float((from_mean_N**2).sum())
        slope = max(0.0, float((from_mean_N * iou_N).sum()) / spread) if spread > 0 else 0.0
        return ScoreMap("linear", slope, float(iou_N.mean() - slope * scores_N.mean()))
    return _logistic(method, scores_N, iou_N)


def _isotonic(scores_N: np.ndarray, iou_N: np.ndarray) -> ScoreMap:
    scores_U, which_N, count_U = np.unique(scores_N, return_inverse=True, return_counts=True)
    iou_U = isotonic_regression(np.bincount(which_N, iou_N) / count_U, weights=count_U).x
    step_U = np.diff(iou_U) != 0
    # A level is given by its first and last score.
    ends_U = np.append(True, step_U) | np.append(step_U, True)
    return ScoreMap(
        "isotonic", scores_K=scores_U[ends_U].tolist(), iou_K=np.clip(iou_U[ends_U], 0, 1).tolist()
    )


def _logistic(method: CalibrationMethod, scores_N: np.ndarray, iou_N: np.ndarray) -> ScoreMap:
    logit_N = _logit(scores_N)
    features_2N = np.stack([logit_N, np.full_like(logit_N, method == "platt")])

    def loss(parameters_2: np.ndarray) -> tuple[float, np.ndarray]:
        forecast_N = parameters_2 @ features_2N
        entropy_N = np.logaddexp(0, forecast_N) - iou_N * forecast_N
        return float(entropy_N.mean()), features_2N @ (_sigmoid(forecast_N) - iou_N) / len(iou_N)

    # The bounds only matter where a perfect separation, or targets that are all 0 or 1, would send
    # them to infinity.
    found = minimize(
        loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0, 100), (-50, 50)], tol=1e-12
    )
    return ScoreMap(method, float(found.x[0]), float(found.x[1]))


def _logit(scores_N: np.ndarray) -> np.ndarray:
    inside_N = np.clip(scores_N, SMALLEST, 1 - SMALLEST)
    return np.log(inside_N) - np.log1p(-inside_N)


def _sigmoid(values_N: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values_N))


def check_replaceable(path: Path) -> None:
    """Raises ValueError if there is a file that is not a calibration."""
    if not path.exists():
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("made_by") != MADE_BY:
        raise ValueError(f"{path}: this file is not a calibration, and is not overwritten")


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes it as JSON. Raises ValueError rather than replace a file that is not a calibration."""
    check_replaceable(path)
    write_json(path, asdict(calibration), indent=2)


def read_calibration(path: Path) -> Calibration:
    """Reads what `write_calibration` wrote. Raises ValueError that names the file."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        found = dacite.from_dict(Calibration, data, dacite.Config(strict=True, cast=[float]))
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        dacite.DaciteError,
    ) as error:
        raise ValueError(f"calibration file {path} cannot be read: {error}") from error
    for score_map in (found.pooled, *found.by_class.values()):
        if (
            score_map.method == "isotonic"
            and not len(score_map.scores_K) == len(score_map.iou_K) > 0
        ):
            raise ValueError(
                f"calibration file {path}: scores_K and iou_K must be equally long, and not empty"
            )
    return found
