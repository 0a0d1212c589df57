"""Printing what comes from files: names, paths and error texts appear as they are.

Rich takes "[red]" in a text for markup and ":smile:" for an emoji; matplotlib takes text between
dollar signs for a formula. A class may have any such name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text


def console(**options: Any) -> Console:
    """The only way to make a console: one that interprets nothing."""
    return Console(markup=False, emoji=False, highlight=False, **options)


class PlainTable(Table):
    """A table whose title, caption, headings and cells are shown as they are, by any console."""

    def __init__(
        self, *headings: Column | str, title: str = "", caption: str = "", **options: Any
    ) -> None:
        columns = (
            replace(heading, header=_plain(heading.header))
            if isinstance(heading, Column)
            else Column(_plain(heading))
            for heading in headings
        )
        super().__init__(
            *columns,
            title=Text(title, "table.title") if title else None,
            caption=Text(caption, "table.caption") if caption else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            **options,
        )

    def __str__(self) -> str:
        printer = console(width=200)
        with printer.capture() as text:
            printer.print(self)
        return text.get().rstrip()

    def add_column(self, header: Any = "", *rest: Any, **options: Any) -> None:
        super().add_column(_plain(header), *rest, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


def _plain(cell: Any) -> Any:
    return Text(cell) if isinstance(cell, str) else cell


class ProgressBar(Progress):
    """The description of a task, as it is, its bar, and further columns. It is drawn when it is
    told of progress, at most ten times a second.

    Rich's own way is a thread that draws. A data-loading process that is forked while this thread
    holds the lock of the console waits for it forever as soon as it prints anything, and the
    training waits for its images.
    """

    SECONDS = 0.1

    def __init__(self, *columns: ProgressColumn, console: Console, disable: bool = False) -> None:
        bar = plain_column("{task.description}"), BarColumn(bar_width=24)
        super().__init__(*bar, *columns, console=console, disable=disable, auto_refresh=False)
        self.drawn = self.get_time()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if self.get_time() - self.drawn >= self.SECONDS:
            self.refresh()

    def refresh(self) -> None:
        self.drawn = self.get_time()
        super().refresh()


def plain_column(text: str) -> TextColumn:
    """A text of a progress bar. (Rich's own columns parse markup, whatever their console does.)"""
    return TextColumn(text, markup=False)


def counted(number: int, one: str, many: str = "") -> str:
    """1 class, 2 classes: `many` is `one` with an s if it is not given."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def without_formulas(text: str) -> str:
    """The text in a form that matplotlib shows as it is."""
    return text.replace("$", r"\$")
