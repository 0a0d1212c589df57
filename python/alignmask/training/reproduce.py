"""A run again, from its folder, and where the repetition differs first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alignmask import checkpoint as checkpoints
from alignmask._files import read_json_lines
from alignmask._printing import counted
from alignmask.config import Config
from alignmask.data import resolve_paths
from alignmask.training.environment import environment, starts
from alignmask.training.log import METRICS
from alignmask.training.trainer import train

MACHINE = ("platform", "device", "kernels", "threads")
TIMES = ("time", "it_per_s")
"""What the log says of the clock and not of the training."""


@dataclass
class Reproduction:
    """Both runs, and what is not equal."""

    run: Path
    repeated: Path
    compared: int
    """Lines of the log that both runs have."""
    environment: list[str] = field(default_factory=list)
    """What is another version or machine, in words."""
    difference: str | None = None
    """The first one."""

    @property
    def is_equal(self) -> bool:
        return self.difference is None

    def __str__(self) -> str:
        lines = [f"{self.repeated} repeats {self.run}"]
        lines += [f"now with another {text}" for text in self.environment]
        compared = f"{counted(self.compared, 'line')} of {METRICS}"
        lines.append(
            f"equal: {compared}, and all weights of the last checkpoint"
            if self.is_equal
            else f"first difference: {self.difference}"
        )
        return "\n".join(lines)


def reproduce(run: Path) -> Reproduction:
    """Train a run again, with its settings and data, as `NAME-reproduced` beside it.

    If that was stopped, it is continued. On a CPU in fp32, with the same versions and number of
    threads, everything is equal bit for bit.

    Raises FileNotFoundError if `run` is no run with a checkpoint and a log; ValueError for data
    that have changed, and for a run with `train.max_minutes`, whose learning rate followed the
    clock.
    """
    last, log = checkpoints.latest(run), run / METRICS
    if last is None or not log.exists():
        raise FileNotFoundError(
            f"{run}: not the folder of a run with a checkpoint and {METRICS}, so there is nothing "
            "to compare with"
        )
    original = checkpoints.load_config(run)
    if original.train.max_minutes is not None:
        raise ValueError(
            f"{run} cannot be repeated exactly: its learning rate followed the clock "
            f"(train.max_minutes {original.train.max_minutes:g})"
        )
    config = replace(original, name=f"{run.name}-reproduced", out=run.parent)
    changed = _changed_environment(run, config)
    repeated = train(config)
    before, after = read_json_lines(log), read_json_lines(repeated / METRICS)
    difference = _first_difference(before, after) or _other_weights(last, repeated)
    return Reproduction(run, repeated, min(len(before), len(after)), changed, difference)


def _changed_environment(run: Path, config: Config) -> list[str]:
    noted = starts(run)
    if not noted:
        return ["version, perhaps: the run is older than its note of versions and data"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    now = environment(resolve_paths(config.data), device)
    for name in ("train_annotations", "val_annotations"):
        if noted[0].get(name) != now[name]:
            raise ValueError(
                f"{run}: {getattr(config.data, name)} is not what the run began with (its SHA-256 "
                "is another), so it cannot be repeated"
            )
    changed = [
        f"settings, at iteration {start['step']}: {setting}"
        for start in noted
        for setting in start.get("changed", ())
    ]
    for name, value in now.items():
        before = list(dict.fromkeys(str(start.get(name)) for start in noted))
        if before != [str(value)]:
            kind = name if name in MACHINE or name in ("commit", "python") else f"version of {name}"
            changed.append(f"{kind}: {value}, before {', then '.join(before)}")
    return changed


def _first_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str | None:
    for first, second in zip(before, after, strict=False):
        for name in first:
            if name not in TIMES and first[name] != second.get(name):
                then, now = _inner(first[name], second.get(name))
                return f"iteration {first['step']}, {name}: {now}, before {then}"
    return None


def _inner(first: Any, second: Any, path: str = "") -> tuple[str, str]:
    """The first values within nested results that differ, with their place."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in first:
            if first[name] != second.get(name):
                return _inner(first[name], second.get(name), f"{path}{name} ")
    return f"{path}{first}", f"{path}{second}"


def _other_weights(last: Path, repeated: Path) -> str | None:
    """Of checkpoints of the same iteration."""
    other = repeated / "checkpoints" / last.name
    if not other.exists():
        return f"{repeated} has no checkpoint {last.name}"
    for ema in (False, True):
        first, second = (checkpoints.load_weights(folder, ema=ema) for folder in (last, other))
        for name, value in first.items():
            if not torch.equal(value, second[name]):
                away = (value.double() - second[name].double()).abs().max().item()
                return f"{last.name}: the weights {name} are up to {away:.3g} away"
    return None
