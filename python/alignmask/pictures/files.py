"""Figures as PNG files that say who made them, so that no other picture is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignmask._files import replacing
from alignmask.data.images import png_software

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, out_png: Path, maker: str) -> None:
    """Write a figure. Raises as `check_figure`."""
    check_figure(out_png, maker)
    with replacing(out_png) as part:
        figure.savefig(part, dpi=120, metadata={"Software": maker})


def check_figure(path: Path, maker: str) -> None:
    """Raises FileExistsError if there is something that `maker` has not drawn."""
    try:
        ours = png_software(path) == maker
    except FileNotFoundError:
        return
    except (OSError, ValueError, SyntaxError):
        ours = False
    if not ours:
        raise FileExistsError(f"{path}: `{maker}` has not drawn this, and does not overwrite it")
