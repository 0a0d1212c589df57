"""`alignmask calibrate`: fit on one half of the images, and show on the other what it brings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignmask._printing import counted
from alignmask.evaluation.bootstrap import Estimate, Measure, intervals, paired_intervals
from alignmask.evaluation.calibration import measure
from alignmask.evaluation.calibrators import (
    FEWEST,
    Calibration,
    Fit,
    Method,
    fit_calibration,
    split_images,
)
from alignmask.evaluation.guarantee import find_guarantee
from alignmask.evaluation.matches import ANY_OVERLAP, Matches, match, match_one
from alignmask.evaluation.results_file import GroundTruth, Results
from alignmask.evaluation.tables import number_table

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
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    difference: dict[str, Estimate]

    def table(self) -> Table:
        """Before, after, and the difference, with intervals over images."""
        images = self.calibration.fit.held_out_images
        title = f"on the {counted(images, 'image that was', 'images that were')} held out"
        table = number_table(title, "score", "quality", "difference [95 %]", first="")
        for name in COMPARED:
            values = (
                Estimate(self.before[name].value),
                Estimate(self.after[name].value),
                self.difference[name],
            )
            table.add_row(name, *map(str, values))
        return table

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        columns = {"before": self.before, "after": self.after, "difference": self.difference}
        return {
            column: {name: estimates[name].as_dict() for name in COMPARED}
            for column, estimates in columns.items()
        }


def calibrate(
    ground_truth: GroundTruth,
    results: Results,
    method: Method = "isotonic",
    *,
    precision: float | None = None,
    iou: float = 0.75,
    confidence: float = 0.95,
    per_class: bool = False,
    fewest: int = FEWEST,
    seed: int = 0,
    resamples: int = 500,
    score: str = "file",
) -> Report:
    """Fits a calibration on one half of the images and measures it on the other.

    Args:
        precision: Asks for a guarantee: this share of the trusted predictions has an IoU of `iou`
            or more.
        per_class: A guarantee for each class, each with the confidence by itself.
        fewest: A class with fewer predictions to fit on takes the map of all classes together.
        seed: Of the split and of the bootstrap.
        score: What kind of score it is, to be stored.
    Raises:
        ValueError: Fewer than 2 images, no prediction, or scores outside 0..1.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"calibrate: iou: expected more than 0 and at most 1, got {iou:g}")
    ours, others = split_images(list(ground_truth.sizes), seed)
    matches = match(ground_truth, results)
    fit = Fit(
        annotations=Path(ground_truth.source).name,
        annotations_sha256=file_hash(Path(ground_truth.source)),
        seed=seed,
        images=len(ours),
        held_out_images=len(others),
        fewest=fewest,
        score=score,
    )
    calibration = fit_calibration(matches[ANY_OVERLAP].subset(ours), method, fit, fewest)
    if precision is not None:
        right = matches[iou] if iou in matches else match_one(ground_truth, results, iou)
        chosen, tested = right.subset(ours), right.subset(others)
        classes: tuple[int | None, ...] = right.category_ids if per_class else (None,)
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

    images = len(others)
    return Report(
        calibration=calibration,
        held_out=before,
        before=intervals(measured(before), images, resamples=resamples, seed=seed),
        after=intervals(measured(after), images, resamples=resamples, seed=seed),
        difference=paired_intervals(
            measured(before), measured(after), images, resamples=resamples, seed=seed
        ),
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; of nothing, if the ground truth did not come from a
    file."""
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
