"""Runs a grid of ablations: variants x seeds in one folder, by any number of processes, resumable
after a kill at any moment.

Every run is the trainer's own, in `folder/VARIANT/seedK`, with result.json once it is done; see
`claims` for how processes share the work.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from alignmask import checkpoint
from alignmask._files import replacing, write_json
from alignmask.ablation.claims import Claim, Claims
from alignmask.ablation.grids import Grid, Variant
from alignmask.config import Config
from alignmask.config_files import changed_fields
from alignmask.training.signals import Stopped
from alignmask.training.trainer import Trainer

RESULT = "result.json"
Status = Literal["done", "failed", "running", "stopped", "missing"]
FINISHED = ("done", "failed")
FAILURES_IN_A_ROW = 3
MAY_DIFFER = (
    "name", "out", "data.workers", "train.evaluate_every", "train.checkpoint_every", "train.log_every",
    "train.keep_checkpoints",
)  # fmt: skip
"""Settings that do not change the result of a run."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    variant: Variant
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def run(self) -> Path:
        return self.config.out / self.config.name

    @property
    def failure(self) -> Path:
        return self.config.out.parent / "failures" / f"{self.name}.txt"


@dataclass(frozen=True)
class State:
    status: Status
    detail: str = ""
    result: dict[str, Any] | None = None
    """What result.json holds: evaluation, iterations, seconds of training."""


def cells(
    grid: Grid, config: Config, seeds: Iterable[int], softmax_class_weight: float | None = None
) -> list[Cell]:
    """All runs of a grid, seed by seed, below `config.out`/`config.name`. Raises ValueError for
    seeds given twice.

    softmax_class_weight: `loss.class_weight` of softmax variants, whose loss is a mean over queries
    and not a sum over classes per instance; None: as in `config`.
    """
    seeds = list(seeds)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"seeds: expected different ones, at least one, got {seeds}")
    found = []
    for seed in seeds:
        for variant in grid.variants:
            changed = variant.change(config)
            if changed.model.classification == "softmax" and softmax_class_weight is not None:
                changed = replace(
                    changed, loss=replace(changed.loss, class_weight=softmax_class_weight)
                )
            run = replace(
                changed, out=config.out / config.name / variant.name, name=f"seed{seed}",
                train=replace(changed.train, seed=seed),
            )  # fmt: skip
            found.append(Cell(variant, seed, run))
    return found


def state(cell: Cell, claims: Claims) -> State:
    """The status of a cell. Raises ValueError if its folder holds a run with another
    configuration."""
    done = (cell.run / RESULT).exists()
    step = 0 if done else _progress(cell.run)
    if done or step:
        _check_same(cell)
    if done:
        result = json.loads((cell.run / RESULT).read_text())
        return State("done", f"{result['iterations']} iterations", result)
    progress = f"iteration {step} of {cell.config.train.iterations}"
    holder = claims.holder(cell.name)
    if holder is not None:
        return State("running", f"{holder}; {progress}")
    if cell.failure.exists():
        lines = cell.failure.read_text().strip().splitlines() or ["no reason was recorded"]
        return State("failed", f"{lines[-1]} ({cell.failure})")
    return State("stopped", progress) if step else State("missing")


def seeds_in(grid: Grid, config: Config) -> list[int]:
    """The seeds with which variants of the grid have been begun below `config.out`/`config.name`,
    in order."""
    folders = (
        run for v in grid.variants for run in (config.out / config.name / v.name).glob("seed*")
    )
    return sorted(
        {int(seed) for run in folders if (seed := run.name.removeprefix("seed")).isdigit()}
    )


def _progress(run: Path) -> int:
    """Iterations behind the newest checkpoint; 0 without one."""
    latest = checkpoint.latest(run)
    return int(latest.name.removeprefix("step_")) if latest is not None else 0


def _check_same(cell: Cell) -> None:
    """Compare with what the run noted when it began, which is there when its checkpoints have been
    deleted."""
    changed = changed_fields(checkpoint.load_config(cell.run), cell.config, may_differ=MAY_DIFFER)
    if changed:
        raise ValueError(
            f"{cell.run} holds a run with other settings ({'; '.join(map(str, changed))}): "
            "give this grid another --name, or the settings of that run"
        )


def work(
    grid_cells: list[Cell],
    claims: Claims,
    say: Callable[[str], None],
    after_each: Callable[[], object] = lambda: None,
    wait: bool = False,
    poll: float = 5.0,
) -> None:
    """Train every cell that is not done, has not failed and is not claimed by another process.

    A cell that raises is reported in full and marked by a file in failures/; the others continue.
    After FAILURES_IN_A_ROW failures this process returns and leaves the rest to others, because the
    cause may be the machine. Raises Stopped after Ctrl-C or SIGTERM, once a checkpoint has been
    written; the same call continues.

    Args:
        say: Called with one message about each event.
        after_each: Called after each cell that this process has tried.
        wait: Keep waiting while other processes work, to take over the cells of those that die.
        poll: Seconds between two checks of the other processes.
    """
    failures = 0
    while True:
        for cell in grid_cells:
            if _finished(cell):
                continue
            claim = claims.take(cell.name)
            if claim is None:
                continue
            with claim:
                _look_again(cell.run)
                if _finished(cell):  # between the two looks
                    continue
                failures = 0 if _try(cell, claim, say) else failures + 1
            gc.collect()
            torch.cuda.empty_cache()
            after_each()
            if failures == FAILURES_IN_A_ROW:
                say(
                    f"{failures} runs in a row failed here: this process stops (--retry tries them "
                    "again)"
                )
                return
        left = {state(cell, claims).status for cell in grid_cells} - set(FINISHED)
        if not left or (left == {"running"} and not wait):
            return
        time.sleep(poll)


def _finished(cell: Cell) -> bool:
    return (cell.run / RESULT).exists() or cell.failure.exists()


def _look_again(run: Path) -> None:
    """Make the file system look again: a network file system may remember for a minute that a file
    did not exist, unless its folder has changed."""
    for folder in (run.parent, run):
        if folder.exists():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".look."):
                pass


def _try(cell: Cell, claim: Claim, say: Callable[[str], None]) -> bool:
    """Train one cell. Returns False if it failed."""
    say(f"{cell.name}: starts")
    try:
        trainer = Trainer(cell.config)
        run = trainer.run()
        result = {
            "iterations": trainer.step,
            "train_seconds": round(trainer.elapsed, 1),
            "evaluation": json.loads((run / "evaluation.json").read_text()),
        }
        write_json(run / RESULT, result, indent=2)
    except Stopped:
        if not claim.lost:
            raise
        say(
            f"{cell.name}: left to another process, which took it over because this one did not "
            "respond"
        )
    except Exception:  # reported in full; the other cells do not depend on it
        say(f"{cell.name}: FAILED\n{traceback.format_exc()}")
        if claim.lost:
            say(
                f"{cell.name}: another process has taken it over and may succeed, so it is not "
                "marked as failed"
            )
        else:
            with replacing(cell.failure) as part:
                part.write_text(traceback.format_exc())
        return False
    else:
        say(f"{cell.name}: done")
        if trainer.signals.requested:  # while it was being evaluated
            raise Stopped("stopped between two runs; the same command continues")
    return True
