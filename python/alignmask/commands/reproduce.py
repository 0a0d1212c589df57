"""`alignmask reproduce`: train a run again and say where it differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from alignmask.commands._options import flowing


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask reproduce", args=arguments)


@flowing
def command(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]) -> int:
    """Train a run again with its settings and data, as RUN-reproduced beside it, and say where its
    log or its weights differ first. The exit code is 1 if they do.

    Args:
        run: The folder of a finished run.
    """
    from alignmask.training.reproduce import reproduce

    found = reproduce(run)
    print(found)
    return 0 if found.is_equal else 1
