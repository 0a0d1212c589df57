"""`alignmask train RECIPE`: every recipe is a subcommand, and its settings are the defaults of the
options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

import alignmask
from alignmask.commands._console import INTERRUPTED, choose_recipe, complain
from alignmask.commands._options import Flag, Folder, let_settings_flow
from alignmask.config import Config
from alignmask.recipes import RECIPES

DESCRIPTION = """Train a model with the settings of a recipe, or continue a stopped run of the same name.
`alignmask train RECIPE --help` lists all settings with the recipe's values.
Several GPUs: torchrun --nproc-per-node 8 -m alignmask.cli train RECIPE ...
"""

MOST_NEEDED = {
    "--dataset DIR": "Your data; or name four paths, --data.train-images and so on.",
    "--name NAME": "The run is written to runs/NAME.",
    "--train.init-from PATH": "Weights to start from: a run, a checkpoint, or nuclei.",
    "--train.iterations N": "How long to train.",
    "--train.max-minutes N": "The same in minutes; None sets no limit.",
    "--train.batch-size N": "Images per step, or auto; --train.accumulate takes them in parts.",
    "--train.learning-rate X": "Belongs to a batch size.",
    "--data.crop N": "Side of the training crops, in pixels.",
    "--data.eval-short-side N": "Size of images in evaluation; and --data.eval-max-side.",
    "--dry-run": "Check the data and try three steps first.",
}
"""The settings that a first run on one's own data needs, as `--help` shows them before all."""
_NEEDED = "The ten settings that most runs need:\n" + "\n".join(
    f"  {option:<26}{text}" for option, text in MOST_NEEDED.items()
)

Part = Literal["model.aligned-queries", "data.shapes"]


def main(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        choose_recipe(arguments[0])  # its message says more than the option parser's
    let_settings_flow()
    return tyro.extras.subcommand_cli_from_dict(
        {name: _command(recipe) for name, recipe in RECIPES.items()},
        prog="alignmask train",
        description=f"{DESCRIPTION}\n{_NEEDED}",
        args=arguments,
        # Optional parts are options like all others, not subcommands.
        config=(tyro.conf.AvoidSubcommands,),
    )


def _command(recipe: Callable[[], Config]) -> Callable[..., int]:
    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = recipe(),  # noqa: B008  these are the options' defaults
        dataset: Annotated[Path | None, Folder] = None,
        without: Annotated[tuple[Part, ...], tyro.conf.arg(help_behavior_hint="")] = (),
        dry_run: Flag = False,
        no_resume: Flag = False,
    ) -> int:
        if dataset is not None:
            config = with_data(config, dataset, recipe())
        return run(switch_off(config, without), dry=dry_run, resume=not no_resume)

    needed = _NEEDED.replace("\n", "\n    ")
    command.__doc__ = f"""{recipe.__doc__}

    {needed}

    Args:
        config: The settings of the run.
        dataset: Folder in which the four data paths and the number of classes are found, in a usual layout (docs/train.md).
        without: Parts to switch off: Aligned Query Learning, or the synthetic data set (then give the four data paths).
        dry_run: Only try a few steps from random weights. Prints losses, seconds and memory, and keeps nothing.
        no_resume: Start anew. An existing run of the same name is renamed.
    """
    return command


def with_data(config: Config, folder: Path, before: Config) -> Config:
    """The config with the paths and the number of classes of the data set in a folder, which are
    printed. Raises ValueError if the config has others already, which the recipe, `before`, has
    not."""
    from alignmask.curation.layouts import find_data_set

    found = find_data_set(folder)
    print(found)
    paths = {name: value for name, value in found._asdict().items() if name != "class_names"}
    asked = [
        f"--data.{name.replace('_', '-')}"
        for name in paths
        if getattr(config.data, name) not in (getattr(before.data, name), paths[name])
    ]
    if config.model.num_classes not in (before.model.num_classes, len(found.class_names)):
        asked.append("--model.num-classes")
    if asked:
        raise ValueError(f"train: --dataset contradicts {', '.join(asked)}: give one or the other")
    return replace(
        config,
        data=replace(config.data, shapes=None, **paths),
        model=replace(config.model, num_classes=len(found.class_names)),
    )


def switch_off(config: Config, parts: tuple[Part, ...]) -> Config:
    """The config with optional parts set to None."""
    for part in parts:
        section, name = part.replace("-", "_").split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: None})})
    return config


def run(config: Config, *, dry: bool = False, resume: bool = True) -> int:
    """Train, or try a few steps if `dry`. Prints where the run is and returns the exit code."""
    if dry:
        from alignmask.training.dry_run import dry_run

        dry_run(config)
        return 0
    from alignmask.training.signals import Stopped

    try:
        print(f"run: {alignmask.train(config, resume=resume)}")
    except Stopped as stopped:
        return complain(str(stopped), INTERRUPTED)
    return 0
