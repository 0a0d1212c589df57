"""The look that all tables of numbers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Column, Table


def number_table(title: str, *names: str, first: Column | str | None = None) -> Table:
    """An empty table of numbers below a title, narrow enough for a terminal of 80 columns.

    Args:
        title: Stands on the left. The table is at least as wide.
        names: The headings of the numbers.
        first: The column of the rows' names; None: rows have no names.
    """
    from rich import box
    from rich.table import Column, Table

    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    return Table(
        *([] if first is None else [first]),
        *numbers,
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        min_width=len(title),
    )
