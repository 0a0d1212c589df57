"""Options of the commands, as `--help` shows them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import tyro

File = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
Folder = tyro.conf.arg(metavar="DIR", help_behavior_hint="")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def flowing(command: Callable[..., int]) -> Callable[..., int]:
    """The command, with each text of the docstring's `Args` on one line: tyro would keep its line breaks."""
    command.__doc__ = re.sub(r"\n {12,}(?=\S)", " ", command.__doc__ or "")
    return command
