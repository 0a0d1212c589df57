"""`alignmask replay`: repeat a step of a training that was not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from alignmask.commands._console import choose_device
from alignmask.commands._options import flowing


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask replay", args=arguments)


@flowing
def command(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
) -> int:
    """Repeat the step that ended a training because its loss or gradient was not finite, and say
    where the first values that are not finite come from.

    The training has left the weights, the images and the random seed of that step in a folder of
    the run, non_finite_step_N.

    Args:
        folder: That folder.
        device: Where to compute: cpu, cuda, cuda:1, ...; auto is a GPU if there is one.
    """
    from alignmask.training.replay import replay

    print(replay(folder, choose_device(device)))
    return 0
