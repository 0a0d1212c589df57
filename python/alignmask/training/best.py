"""Which evaluation was the best, and how long ago: `train.best_by` and `train.patience`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignmask._files import read_json_lines
from alignmask._printing import counted
from alignmask.config import Config
from alignmask.evaluation.metrics import NUMBERS

SHARE = 0.1
"""The alignment statistics are those of this share of the predictions, the most confident."""
ALIGNMENT = tuple(
    f"{name}_{kind}"
    for name in ("pcc", "spearman", "mean_iou")
    for kind in ("same_class", "any_class")
)
METRICS = (*NUMBERS, *ALIGNMENT)
"""What a run can be judged by. Of all of them more is better."""


def check_metric(name: str) -> None:
    """Raises ValueError, which lists all names, for one that no evaluation has."""
    if name not in METRICS:
        raise ValueError(f"train.best_by: no metric {name!r}; expected one of {', '.join(METRICS)}")


def value_of(modes: dict[str, Any], score: str, name: str) -> float:
    """A metric by one score, from the "modes" of an evaluation as JSON. Minus infinity if it was
    not measured, or is not defined for these predictions."""
    mode = modes.get(score, {})
    found = mode.get("metrics", {}).get(name)
    if name in ALIGNMENT:
        top = mode.get("alignment", {}).get("top", [])
        found = next((row[name] for row in top if row["fraction"] == SHARE), None)
    return -math.inf if found is None or math.isnan(found) else found


class Judge:
    """Compares the evaluations of a run."""

    def __init__(self, config: Config) -> None:
        self.score, self.metric = config.model.score, config.train.best_by
        self.patience = config.train.patience
        self.best = -math.inf
        """The value that the best checkpoint has."""
        self.values: list[float] = []
        """Of all evaluations in the log."""

    def recall(self, log: Path) -> None:
        """Read the evaluations of a continued run from its log (metrics.jsonl)."""
        self.values = [
            value_of(line["eval"]["modes"], self.score, self.metric)
            for line in read_json_lines(log)
            if "eval" in line
        ]

    def is_better(self, modes: dict[str, Any]) -> bool:
        """Whether an evaluation is better than the best checkpoint. It is added to the others."""
        self.values.append(value_of(modes, self.score, self.metric))
        better = self.values[-1] > self.best
        self.best = max(self.best, self.values[-1])
        return better

    @property
    def has_seen_enough(self) -> bool:
        """Whether `train.patience` is at an end."""
        return self.patience is not None and since_best(self.values) >= self.patience

    def __str__(self) -> str:
        """Why a run ends early."""
        return (
            f"{counted(since_best(self.values), 'evaluation')} in a row without a better "
            f"{self.metric} than {max(self.values):.4g} (train.patience {self.patience})"
        )


def since_best(values: Sequence[float]) -> int:
    """Number of evaluations after the best one; of equal ones the first is the best."""
    return len(values) - 1 - values.index(max(values)) if values else 0
