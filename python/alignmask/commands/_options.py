"""Kinds of options that several commands have, for their `--help`."""

from __future__ import annotations

from typing import Annotated

import tyro

File = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
Folder = tyro.conf.arg(metavar="DIR", help_behavior_hint="")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
