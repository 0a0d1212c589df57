"""`alignmask calibrate`: fit on one half of the images, and show on the other what it brings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignmask._files import sha256
from alignmask._printing import counted
from alignmask.config import FEWEST, SHOWN_SCORE, CalibrationMethod, Suppression
from alignmask.evaluation.best_f1 import F1_IOU, best_thresholds, f1_at
from alignmask.evaluation.bootstrap import Estimate, Measure, paired_intervals
from alignmask.evaluation.calibration import measure
from alignmask.evaluation.calibrators import Calibration, Fit, fit_calibration, split_images
from alignmask.evaluation.duplicates import suppress_duplicates
from alignmask.evaluation.guarantee import find_guarantee
from alignmask.evaluation.matches import ANY_OVERLAP, Matches, match
from alignmask.evaluation.results_file import GroundTruth, Results
from alignmask.evaluation.tables import number_table, three_decimals

if TYPE_CHECKING:
    from rich.table import Table

COMPARED = ("LaECE0", "LaACE0", "D-ECE50", "Brier50", "Brier75", "AUROC50", "AUROC75")
"""The measures that a calibration can change. (oLRP depends on the ranking within each class
alone.)"""


@dataclass(frozen=True)
class Report:
    """A calibration, and what it brings on the images that it was not fitted on."""

    calibration: Calibration
    held_out: Mapping[float, Matches]
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    """The measures of the scores, and of the calibrated ones."""
    difference: Mapping[str, Estimate]
    f1: dict[str, float | None]
    """F1 on the held-out images: with the "best" threshold of each class, and "from 0.5 on"."""
    categories: Mapping[int, str]
    file: Path | None = None
    """Where the calibration was written to."""

    def table(self) -> Table:
        """Before, after, and the difference, with intervals over images."""
        images = self.calibration.fit.held_out_images
        title = f"on the {counted(images, 'image that was', 'images that were')} held out"
        table = number_table(title, "score", "quality", "difference [95 %]", first="")
        for name in COMPARED:
            values = (three_decimals(side[name]) for side in (self.before, self.after))
            table.add_row(name, *values, self.difference[name].signed())
        return table

    def sentences(self) -> list[str]:
        """What the table does not show: thresholds and guarantees, in words."""
        said = []
        best, plain = self.f1["best"], self.f1["from 0.5 on"]
        if best is not None and plain is not None:
            said.append(
                f"F1 on these images: {best:.3f} with the best thresholds of the classes, "
                f"{plain:.3f} at {SHOWN_SCORE:g}"
            )
        for guarantee in self.calibration.guarantees:
            one = guarantee.category_id
            said.append(guarantee.describe(None if one is None else self.categories[one]))
        return said


def check_iou(iou: float) -> None:
    """Raises ValueError for an IoU that no prediction or every prediction has."""
    if not 0 < iou <= 1:
        raise ValueError(f"calibrate: iou: expected more than 0 and at most 1, got {iou:g}")


def calibrate(
    ground_truth: GroundTruth,
    results: Results,
    method: CalibrationMethod = "isotonic",
    *,
    precision: float | None = None,
    iou: float = 0.75,
    confidence: float = 0.95,
    per_class: bool = False,
    fewest: int = FEWEST,
    seed: int = 0,
    resamples: int = 500,
    score: str = "file",
    suppression: Suppression = "off",
    tile: int | None = None,
) -> Report:
    """Fits a calibration on one half of the images and measures it on the other.

    Args:
        precision: Asks for a guarantee: this share of the trusted predictions has an IoU of `iou`
            or more.
        per_class: A guarantee for each class, each with the confidence by itself.
        fewest: A class with fewer predictions to fit on takes the map of all classes together.
        seed: Of the split and of the bootstrap.
        score: What kind of score it is, to be stored.
        suppression: What is done to second masks before anything is fitted and tested.
        tile: Side of the tiles in which the results were predicted, to be stored; None: as a whole.
    Raises:
        ValueError: Fewer than 2 images, no prediction, or scores outside 0..1.
    """
    check_iou(iou)
    results = suppress_duplicates(results, suppression)
    ours, others = split_images(list(ground_truth.sizes), seed)
    thresholds = (ANY_OVERLAP, 0.5, 0.75, iou)
    matches = match(ground_truth, results, thresholds, per_class=max(1, len(results.entries)))
    fit = Fit(
        annotations=Path(ground_truth.source).name,
        annotations_sha256=annotations_hash(Path(ground_truth.source)),
        seed=seed,
        images=len(ours),
        held_out_images=len(others),
        fewest=fewest,
        score=score,
        suppression=suppression,
        tile=tile,
    )
    calibration = fit_calibration(matches[ANY_OVERLAP].subset(ours), method, fit, fewest)
    best_f1 = best_thresholds(matches[F1_IOU].subset(ours))
    if best_f1.pooled.threshold is not None:
        calibration = replace(calibration, best_f1=best_f1)
    if precision is not None:
        chosen, tested = matches[iou].subset(ours), matches[iou].subset(others)
        classes: tuple[int | None, ...] = chosen.category_ids if per_class else (None,)
        guarantees = [
            find_guarantee(
                chosen, tested, precision=precision, confidence=confidence, category_id=category_id
            )
            for category_id in classes
        ]
        calibration = replace(calibration, guarantees=guarantees)

    before = {threshold: found.subset(others) for threshold, found in matches.items()}
    after = {threshold: calibration.calibrate(found) for threshold, found in before.items()}

    def measured(found: Mapping[float, Matches]) -> Measure:
        return lambda weight_I: measure(found, weight_I)

    images, half = len(others), before[F1_IOU]
    return Report(
        calibration=calibration,
        held_out=before,
        before=measure(before),
        after=measure(after),
        difference=paired_intervals(
            measured(before), measured(after), images, resamples=resamples, seed=seed
        ),
        f1={
            "best": None
            if calibration.best_f1 is None
            else f1_at(half, calibration.best_f1.of(np.array(half.category_ids)[half.class_N])),
            "from 0.5 on": f1_at(half, SHOWN_SCORE),
        },
        categories=ground_truth.categories,
    )


def annotations_hash(path: Path) -> str:
    """SHA-256 of an annotation file or folder of labels; of nothing, if the ground truth did not
    come from one."""
    return sha256(path) if path.exists() and path != Path() else hashlib.sha256(b"").hexdigest()
