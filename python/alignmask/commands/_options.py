"""Options of the commands, as `--help` shows them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated

import tyro

from alignmask import config
from alignmask.config import LEAST_LIMIT

File = tyro.conf.arg(metavar="FILE", help_behavior_hint="")
Folder = tyro.conf.arg(metavar="DIR", help_behavior_hint="")
TILE = tyro.conf.arg(metavar="auto|whole|SIDE")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


def flowing(command: Callable[..., int]) -> Callable[..., int]:
    """The command, with each text of the docstring's `Args` on one line: tyro would keep its line
    breaks."""
    command.__doc__ = re.sub(r"\n {12,}(?=\S)", " ", command.__doc__ or "")
    return command


def let_settings_flow() -> None:
    """Give tyro the text below each setting of `alignmask.config` on one line, as the field's
    metadata `help`.

    tyro looks there first. It finds the texts by itself, too, but would keep their line breaks.
    """
    for node in ast.parse(inspect.getsource(config)).body:
        settings = getattr(config, node.name) if isinstance(node, ast.ClassDef) else None
        if not (isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(settings)):
            continue
        fields = {field.name: field for field in dataclasses.fields(settings)}
        for field, text in pairwise(node.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(words))
                ):
                    fields[name].metadata = MappingProxyType({"help": " ".join(words.split())})


def check_measuring(command: str, suppression_iou: float, max_detections: int) -> None:
    """Raises ValueError, in the words of the command line, for options that nothing can be measured
    with."""
    if not 0 <= suppression_iou <= 1:
        raise ValueError(f"{command}: --suppression-iou: expected 0 to 1, got {suppression_iou:g}")
    if max_detections < LEAST_LIMIT:
        raise ValueError(
            f"{command}: --max-detections: expected {LEAST_LIMIT} or more, got {max_detections}"
        )
