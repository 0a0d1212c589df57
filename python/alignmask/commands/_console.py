"""What the commands share: exit codes, messages, a progress bar, and devices and recipes by name.

Imports are inside the functions, so that the command line starts without torch and without the
extra `[train]`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from alignmask.config import Config

USER_ERROR, INTERRUPTED = 2, 130
"""Exit codes."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr inside the block. Yields a function of (number done, number in
    total)."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    from alignmask._printing import ProgressBar, console

    columns = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with ProgressBar(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def removing_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the command as Ctrl-C does, so that what is half written is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Raises ValueError for a device that
    cannot be used."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def choose_recipe(name: str) -> Callable[[], Config]:
    """The recipe of that name. Raises ValueError, which lists all recipes, for an unknown name."""
    from alignmask.recipes import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")


def note(text: str) -> None:
    """Print to stderr what the user should know, though nothing is wrong."""
    print(f"alignmask: {text}", file=sys.stderr)


def complain(text: str, code: int = USER_ERROR) -> int:
    """Print what is wrong to stderr. Returns the exit code."""
    note(text)
    return code
