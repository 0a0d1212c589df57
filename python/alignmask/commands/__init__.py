"""The commands of the command line: each module's `main(arguments)` parses them and returns an exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from alignmask.config import Config


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Raises ValueError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_recipe(name: str) -> Callable[[], Config]:
    """The recipe of that name. Raises ValueError that lists the recipes for any other name."""
    from alignmask.recipes import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
