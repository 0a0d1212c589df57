"""The confusion matrix as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alignmask.evaluation.confusion import NOTHING, Confusion
from alignmask.pictures.files import save_figure
from alignmask.pictures.fonts import lettering

FILE = "confusion.png"
MAKER = "alignmask eval"
"""What the picture is recognised by, so that no other one is overwritten."""
MOST_NUMBERS = 25
"""With more classes than this, the numbers do not fit into the cells."""


def confusion_picture(confusion: Confusion, out_png: Path) -> None:
    """Draws the matrix: colours are shares of the objects of a class (of the last line: of all
    predictions on nothing), numbers are counts.

    Raises FileExistsError rather than replace a picture that is not one of these.
    """
    counts_CC = confusion.counts_CC
    size = len(counts_CC)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(1.8 + 0.45 * size, 4, 24))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    if size <= MOST_NUMBERS + 1:
        for (row, column), count in np.ndenumerate(counts_CC):
            if count:
                colour = "white" if share_CC[row, column] > 0.6 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", fontsize=8, color=colour
                )
    written = [*lettering(confusion.names), *lettering([NOTHING])]
    labels = [name.text if len(name.text) <= 24 else f"{name.text[:23]}…" for name in written]
    fontsize = 9 if size <= MOST_NUMBERS + 1 else 6
    axes.set_xticks(range(size), labels, rotation=90, fontsize=fontsize)
    axes.set_yticks(range(size), labels, fontsize=fontsize)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, name in zip(ticks, written, strict=True):
            # The names of classes are no formulas, whatever dollar signs they have.
            label.set(fontfamily=name.families, parse_math=False)
    axes.set(xlabel="predicted", ylabel="object")
    axes.set_title(f"score >= {confusion.score:g}, IoU >= {confusion.iou:g}", fontsize=9)
    save_figure(figure, out_png, MAKER)
