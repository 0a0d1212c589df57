"""`alignmask ablate GRID RECIPE`: the paper's ablations, and others, with any recipe and data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from alignmask._printing import PlainTable, console
from alignmask.ablation.claims import Claims
from alignmask.ablation.grids import GRIDS, Grid
from alignmask.commands._console import INTERRUPTED, choose_recipe, complain
from alignmask.commands._options import Flag, let_settings_flow
from alignmask.commands.train import switch_off
from alignmask.config import Config
from alignmask.recipes import RECIPES
from alignmask.training.signals import Stopped

if TYPE_CHECKING:
    from alignmask.ablation import runs

FAILED = 1
USAGE = "usage: alignmask ablate GRID RECIPE ...\n\n{grids}\n\n`alignmask ablate GRID RECIPE --help` lists all settings."


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        grids = "\n".join(f"  {name:<11} {grid.title}" for name, grid in GRIDS.items())
        print(
            USAGE.format(grids=f"GRID is one of\n{grids}\n\nRECIPE is one of {', '.join(RECIPES)}")
        )
        return 0
    name, *rest = arguments
    if name not in GRIDS:
        raise ValueError(f"ablate: unknown grid {name!r}: expected one of {', '.join(GRIDS)}")
    if rest and not rest[0].startswith("-"):
        choose_recipe(rest[0])  # its message says more than the option parser's
    let_settings_flow()
    return tyro.extras.subcommand_cli_from_dict(
        {recipe: _command(name, function) for recipe, function in RECIPES.items()},
        prog=f"alignmask ablate {name}",
        description=GRIDS[name].title,
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _command(grid: str, recipe: Callable[[], Config]) -> Callable[..., int]:
    base = recipe()
    # The same budget for every cell is a number of iterations, not of minutes.
    base = replace(base, name=f"ablate_{base.name}", train=replace(base.train, max_minutes=None))

    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = base,
        without: Annotated[
            tuple[Literal["data.shapes"], ...], tyro.conf.arg(help_behavior_hint="")
        ] = (),
        seeds: tuple[int, ...] = (0, 1, 2),
        only: tuple[str, ...] = (),
        softmax_class_weight: float = 2.0,
        dry_run: Flag = False,
        wait: Flag = False,
        retry: Flag = False,
    ) -> int:
        config = switch_off(config, without)
        return run(
            grid, config, seeds, only, softmax_class_weight, dry=dry_run, wait=wait, retry=retry
        )

    command.__doc__ = f"""{GRIDS[grid].title}, with the recipe {base.name.removeprefix("ablate_")}

    Every variant is trained with every seed below OUT/NAME. Finished runs are skipped, and stopped runs are continued. The
    tables are written there as {grid}.md, {grid}.png and {grid}.json. The command can be started any number of times, also
    on several GPUs and machines that share the folder: no run is done twice, and another process takes over the runs of one
    that died.

    Args:
        config: The settings that all runs have in common.
        without: Parts to switch off: the synthetic data set (then give the four data paths).
        seeds: Every variant is trained with each of these. The tables also show existing runs with other seeds.
        only: Names of the variants to train; by default all.
        softmax_class_weight: The loss.class_weight of softmax variants, whose classification loss has another scale.
        dry_run: Only list the runs and their status.
        wait: Keep waiting while other processes work, to take over the runs of those that die.
        retry: Try failed runs again.
    """
    return command


def run(
    name: str,
    config: Config,
    seeds: tuple[int, ...],
    only: tuple[str, ...] = (),
    softmax_class_weight: float = 2.0,
    *,
    dry: bool = False,
    wait: bool = False,
    retry: bool = False,
) -> int:
    """List the plan, train, print and write the tables. Returns 1 if runs have failed."""
    from alignmask.ablation import runs
    from alignmask.ablation.tables import write_tables
    from alignmask.data import resolve_paths, train_dataset, val_dataset
    from alignmask.training.checks import check_data

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "ablate: torchrun's processes would each do runs of their own; start one process per "
            "GPU instead: "
            "CUDA_VISIBLE_DEVICES=0 alignmask ablate ..., and so on (--train.accumulate N makes a "
            "large batch fit)"
        )
    grid = GRIDS[name]
    _check_names(grid, only)
    config = replace(config, data=resolve_paths(config.data))
    # A fault of the data is reported once, and not by every run.
    check_data(config, train_dataset(config.data), val_dataset(config.data, masks=False))
    folder = config.out / config.name
    claims = Claims(folder / "claims")
    cells = [
        cell
        for cell in runs.cells(grid, config, seeds, softmax_class_weight)
        if not only or cell.variant.name in only
    ]
    if retry and not dry:
        for cell in cells:
            cell.failure.unlink(missing_ok=True)
    terminal = console(stderr=True)
    terminal.print(plan(grid, folder, cells, claims))
    if dry:
        return 0
    # The tables also show what other commands have done in this folder: other seeds, or other
    # variants.
    begun = [v for v in grid.variants if not only or v.name in only or (folder / v.name).exists()]
    shown = replace(grid, variants=tuple(begun))
    every_seed = sorted({*seeds, *runs.seeds_in(shown, config)})
    every_cell = runs.cells(shown, config, every_seed, softmax_class_weight)

    def tables() -> str:
        return write_tables(
            shown, [(cell, runs.state(cell, claims)) for cell in every_cell], folder, name
        )

    def say(text: str) -> None:
        terminal.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True)

    try:
        runs.work(cells, claims, say, after_each=tables, wait=wait)
    except Stopped as stopped:
        return complain(str(stopped), INTERRUPTED)
    print(tables())
    terminal.print(f"{folder / name}.md, .png, .json", soft_wrap=True)
    states = {cell.name: runs.state(cell, claims) for cell in cells}
    running = [cell for cell, state in states.items() if state.status == "running"]
    if running:
        say(
            f"still running elsewhere: {', '.join(running)}; the same command collects their "
            "results"
        )
    failed = [
        f"{cell}: {state.detail}" for cell, state in states.items() if state.status == "failed"
    ]
    if failed:
        return complain(
            f"{len(failed)} of {len(cells)} runs failed (--retry tries them again)\n"
            + "\n".join(failed),
            FAILED,
        )
    return 0


def plan(grid: Grid, folder: Path, cells: list[runs.Cell], claims: Claims) -> PlainTable:
    """Every run and its status."""
    from alignmask.ablation import runs

    table = PlainTable(title=f"{grid.title}: {folder}")
    for heading in ("run", "variant", "status", ""):
        table.add_column(heading, overflow="fold")
    for cell in cells:
        state = runs.state(cell, claims)
        table.add_row(
            cell.name, " / ".join(filter(None, cell.variant.labels)), state.status, state.detail
        )
    return table


def _check_names(grid: Grid, only: tuple[str, ...]) -> None:
    names = [variant.name for variant in grid.variants]
    if unknown := set(only) - set(names):
        raise ValueError(
            f"ablate --only: unknown {', '.join(sorted(unknown))}: expected some of "
            f"{', '.join(names)}"
        )
