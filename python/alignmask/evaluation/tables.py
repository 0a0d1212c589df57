"""The look that all tables of numbers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Column

    from alignmask._printing import PlainTable


def number_table(
    title: str, *names: str, first: Column | str | None = None, caption: str = ""
) -> PlainTable:
    """An empty table of numbers below a title, narrow enough for a terminal of 80 columns.

    Args:
        title: Stands on the left. The table is at least as wide.
        names: The headings of the numbers.
        first: The column of the rows' names; None: rows have no names.
        caption: Stands below the table, on the left.
    """
    from rich.cells import cell_len
    from rich.table import Column

    from alignmask._printing import PlainTable

    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    return PlainTable(
        *([] if first is None else [first]),
        *numbers,
        title=title,
        caption=caption,
        padding=0,
        min_width=cell_len(title),
    )


def three_decimals(value: float | None) -> str:
    """A number, or "-" where it is not defined."""
    return "-" if value is None else f"{value:.3f}"
