"""The folder of a run: how it is begun, continued and filled.

config.json (the resolved configuration), checkpoints/step_NNNNNNN (the newest ones), best (the
checkpoint with the highest AP, or another metric), evaluation.json and results.json (of the last
evaluation), metrics.jsonl and tensorboard (the log), environment.jsonl (versions, machine and data
of every start).
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from alignmask import checkpoint as checkpoints
from alignmask.config import Config
from alignmask.config_files import changed_fields
from alignmask.training.best import value_of
from alignmask.training.environment import append, environment
from alignmask.training.run_lock import hold

MAY_DIFFER = (
    "name", "out",
    "model.score", "data.workers",
    "train.iterations", "train.batch_size", "train.accumulate", "train.shard", "train.cuda_graphs",
    "train.learning_rate", "train.scale_learning_rate_from", "train.backbone_multiplier", "train.weight_decay",
    "train.schedule", "train.milestones", "train.warmup", "train.clip", "train.precision", "train.ema",
    "train.best_by", "train.patience", "train.trackers",
    "train.evaluate_every", "train.checkpoint_every", "train.log_every", "train.keep_checkpoints", "train.max_minutes",
)  # fmt: skip
"""Settings that may change when a run is continued. All others must be those with which it
began."""


class RunFolder:
    """`path` is where the run of `config` is written."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.path = config.out / config.name
        self.best = self.path / "best"

    def begin(
        self, resume: bool, accelerator: Accelerator, classes: dict[str, list[Any]]
    ) -> Path | None:
        """Prepare the folder. Returns the checkpoint to continue from, None for a new run.

        An existing run that is not continued is renamed: nothing of it is ever deleted. A damaged
        checkpoint is renamed as well, and the one before it taken. Raises FileExistsError if the
        folder is not a run; ValueError for a name that leads out of `out`, if settings of the run
        to continue differ that are not in MAY_DIFFER, or its classes, or if all its checkpoints are
        damaged; RunInUse if another process trains it.

        classes: The data's class_names and category_ids, as the meta file of a checkpoint has them.
        """
        self._check_place()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and self.path.exists():
            hold(self.path)
            checkpoints.tidy(self.path)
            if resume:
                self._set_damaged_aside()
        accelerator.wait_for_everyone()
        newest = self.latest() if resume else None
        if newest is not None:
            self._check_settings(newest)
            self._check_classes(newest, classes)
        elif self.path.exists() and accelerator.is_main_process:
            aside = self.path.rename(self._free_name())
            warnings.warn(f"the run that was {self.path} is now {aside.name}", stacklevel=2)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
            hold(self.path)
            if newest is None:
                checkpoints.write_config(self.path, self.config)
        return newest

    def note_start(self, step: int, accelerator: Accelerator) -> None:
        """Write down with what the run is begun or continued at an iteration."""
        if accelerator.is_main_process:
            values = environment(self.config.data, accelerator.device)
            append(self.path, step, {**values, "changed": self.changed_settings()})
            checkpoints.write_config(self.path, self.config)

    def changed_settings(self) -> list[str]:
        """The settings that are not as they were when the run was trained last."""
        before = checkpoints.load_config(self.path)
        return [str(change) for change in changed_fields(before, self.config, ("name", "out"))]

    def _check_place(self) -> None:
        name = Path(self.config.name)
        if not name.name or ".." in name.parts:
            raise ValueError(
                f"name: expected the name of a folder in {self.config.out}, got {self.config.name!r}"
            )
        files = list(self.path.iterdir()) if self.path.is_dir() else [self.path]
        is_run = any(file.name in (checkpoints.CONFIG, "checkpoints") for file in files)
        # A process that is killed as it begins leaves no more than hidden files.
        foreign = [file for file in files if not file.name.startswith(".") or file.is_dir()]
        if self.path.exists() and foreign and not is_run:
            raise FileExistsError(
                f"{self.path}: it exists and is not a run, so it is left as it is; give this run "
                "another --name or --out"
            )

    def _set_damaged_aside(self) -> None:
        """Rename checkpoints that are damaged and newer than the newest sound one."""
        damaged: list[Path] = []
        for folder in sorted((self.path / "checkpoints").glob("step_*"), reverse=True):
            try:
                checkpoints.check(folder)
                break
            except (ValueError, FileNotFoundError) as error:
                warnings.warn(str(error), stacklevel=2)
                damaged.append(folder)
        else:
            if damaged:
                raise ValueError(
                    f"run {self.path}: all {len(damaged)} checkpoints are damaged, so it cannot be "
                    "continued; --no-resume starts it anew (the old folder is renamed)"
                )
        for folder in damaged:
            aside = _free(folder.with_name(f"damaged_{folder.name}"))
            folder.rename(aside)
            warnings.warn(f"{folder} is now {aside.name}; an older one is used", stacklevel=2)

    def _free_name(self) -> Path:
        """The run's name with the time."""
        return _free(self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"))

    def _check_settings(self, checkpoint: Path) -> None:
        changed = changed_fields(
            checkpoints.load_config(checkpoint), self.config, may_differ=MAY_DIFFER
        )
        if changed:
            raise ValueError(
                f"run {self.path} exists with another configuration "
                f"({'; '.join(map(str, changed))}); "
                "give this run another --name, or --no-resume to start it anew (the old folder is "
                "renamed)"
            )

    def _check_classes(self, checkpoint: Path, classes: dict[str, list[Any]]) -> None:
        """Classes in another order would train one class's row on the objects of another."""
        meta = checkpoints.load_meta(checkpoint)
        for key, now in classes.items():
            before = meta.get(key, now)
            if before != now:
                raise ValueError(
                    f"run {self.path} was begun with other classes: "
                    f"{_difference(key, before, now)}; give this run another --name, or "
                    "--no-resume to start it anew (the old folder is renamed), or begin a new run "
                    f"from its weights with --train.init-from {self.path}, which matches classes "
                    "by name"
                )

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of an iteration."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return checkpoints.latest(self.path)

    def save(
        self,
        meta: dict[str, Any],
        weights: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        state: dict[str, Any],
    ) -> None:
        """Write the checkpoint of iteration meta["step"], and remove the oldest ones."""
        checkpoints.save(self.checkpoint(meta["step"]), self.config, weights, meta, ema, state)
        checkpoints.prune(self.path, self.config.train.keep_checkpoints)

    def save_best(
        self, meta: dict[str, Any], weights: dict[str, Tensor], modes: dict[str, Any]
    ) -> None:
        """modes: What the evaluation has by every score, as JSON."""
        numbers = {
            part: {score: mode[part] for score, mode in modes.items()}
            for part in ("metrics", "alignment")
        }
        checkpoints.save(self.best, self.config, weights, {**meta, **numbers})

    def best_value(self) -> float:
        """The value of `train.best_by` that the best checkpoint has by `model.score`; minus
        infinity if there is none, or if it was not measured by this score."""
        if not self.best.exists():
            return -math.inf
        meta, score = checkpoints.load_meta(self.best), self.config.model.score
        mode = {part: meta.get(part, {}).get(score, {}) for part in ("metrics", "alignment")}
        return value_of({score: mode}, score, self.config.train.best_by)

    def is_evaluated(self) -> bool:
        return (self.path / "evaluation.json").exists()


def _free(path: Path) -> Path:
    """The path, with a number if there is something at it."""
    numbered = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def _difference(key: str, before: list[Any], now: list[Any]) -> str:
    """Both lists, of long ones the part around the first difference, and where that is."""
    shared = min(len(before), len(now))
    first = next((n for n in range(shared) if before[n] != now[n]), shared)
    start, stop = (0, 12) if max(len(before), len(now)) <= 12 else (max(0, first - 3), first + 4)

    def part(values: list[Any]) -> str:
        ends = (["..."] if start else [], ["..."] if stop < len(values) else [])
        return f"[{', '.join([*ends[0], *map(repr, values[start:stop]), *ends[1]])}]"

    return f"{key} were {part(before)}, now {part(now)} (number {first + 1} is the first to differ)"
