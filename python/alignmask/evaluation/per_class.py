"""What an evaluation says of each class: a table to print, JSON and CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignmask._files import replacing
from alignmask.evaluation.best_f1 import Thresholds
from alignmask.evaluation.duplicates import Duplicates
from alignmask.evaluation.metrics import CocoMetrics, headings, percent, unique_names
from alignmask.evaluation.results_file import GroundTruth
from alignmask.evaluation.tables import number_table, three_decimals

if TYPE_CHECKING:
    from rich.table import Table

FILE = "per_class.csv"
FEW_CLASSES = 20
"""So many lines are printed without being asked for."""


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class, as fractions; -1 without ground truth, as in the official tool."""

    name: str
    """Classes that share a name have their id added."""
    category_id: int
    instances: int
    """Objects of the data set, without crowd regions."""
    AP: float
    AP50: float
    AR: float
    """Average recall at the limit of predictions that AP has, officially 100."""
    shown: int
    """Predictions with a score of 0.5 or more."""
    duplicates: float | None
    """The share of those that are second masks of an object; None without any."""
    F1: float
    threshold: float | None
    """The largest F1 at an IoU of 0.5, and the score from which on predictions are then kept."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


COLUMNS = [entry.name for entry in fields(ClassRow)]


def class_rows(
    ground_truth: GroundTruth,
    metrics: CocoMetrics,
    duplicates: Mapping[int, Duplicates],
    thresholds: Thresholds,
) -> tuple[ClassRow, ...]:
    """A row for every category, in the order of their ids."""
    instances = Counter(a["category_id"] for a in ground_truth.annotations if not a["iscrowd"])
    rows = []
    for category_id, name in unique_names(ground_truth.categories).items():
        shown = duplicates.get(category_id, Duplicates(0, 0))
        best = thresholds.by_class.get(str(category_id))
        rows.append(
            ClassRow(
                name=name,
                category_id=category_id,
                instances=instances[category_id],
                AP=metrics.per_category[name],
                AP50=metrics.per_category_AP50[name],
                AR=metrics.per_category_AR[name],
                shown=shown.predictions,
                duplicates=shown.share,
                F1=-1.0 if best is None else best.f1,
                threshold=None if best is None else best.threshold,
            )
        )
    return tuple(rows)


def class_table(rows: Sequence[ClassRow], metrics: CocoMetrics, title: str) -> Table:
    """A line for each class, the best AP first; classes without ground truth last."""
    recall = headings([metrics])[8]
    table = number_table(
        title, "AP", "AP50", recall, "instances", "shown", "second masks", "best F1", "from score on",
        first="class",
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: -row.AP):
        table.add_row(
            row.name,
            *map(percent, (row.AP, row.AP50, row.AR)),
            str(row.instances),
            str(row.shown),
            "-" if row.duplicates is None else percent(row.duplicates),
            percent(row.F1),
            three_decimals(row.threshold),
        )
    return table


def write_csv(path: Path, rows: Sequence[ClassRow]) -> None:
    """Writes the rows, with an empty cell for what is not defined. Raises FileExistsError rather
    than replace a file that is not such a table."""
    check_csv(path)
    with replacing(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(
                ["" if value is None or value == -1 else value for value in row.as_dict().values()]
            )


def check_csv(path: Path) -> None:
    """Raises FileExistsError if there is something that is not such a table."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            ours = next(csv.reader(file), None) == COLUMNS
    except FileNotFoundError:
        return
    except (OSError, ValueError, csv.Error):
        ours = False
    if not ours:
        raise FileExistsError(f"{path}: this is not a table of classes, and is not overwritten")
