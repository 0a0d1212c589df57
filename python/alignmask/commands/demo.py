"""`alignmask demo`: train a small AlignMask on synthetic images and draw what it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

import alignmask
from alignmask._printing import console
from alignmask.commands._console import INTERRUPTED, complain
from alignmask.recipes import shapes_tiny
from alignmask.training.signals import Stopped


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask demo", args=arguments)


def command(
    minutes: float = 10.0, out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("demo")
) -> int:
    """Train a small AlignMask on built-in synthetic images, evaluate it on held-out ones, and draw
    pictures.

    After Ctrl-C, the same command continues where it stopped.

    Args:
        minutes: Minutes of training. Making the images, evaluating and drawing take a few more.
        out: Folder to write to.
    """
    if not minutes > 0:
        raise ValueError(f"demo: --minutes: expected more than 0, got {minutes:g}")
    recipe = shapes_tiny()
    config = replace(recipe, out=out, train=replace(recipe.train, max_minutes=minutes))
    try:
        run = alignmask.train(config)
    except Stopped as stopped:
        return complain(str(stopped), INTERRUPTED)
    from alignmask.data import val_dataset
    from alignmask.pictures.run import run_pictures

    dataset = val_dataset(config.data)
    pictures = run_pictures(run, dataset, out)
    console().print(
        alignmask.evaluate(run / "results.json", annotations=dataset.annotations).table()
    )
    for what, picture in pictures.items():
        print(f"{what}: {picture}")
    print(f"look into its predictions: alignmask analyze {run}")
    print(f"use the model: alignmask predict {run} IMAGE... --out predictions")
    return 0
