"""Reliability diagrams: the mean IoU and the share of right predictions against the score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignmask.evaluation.calibration import (
    BINS,
    EDGES,
    Reliability,
    of_class,
    of_size,
    reliability,
)
from alignmask.evaluation.matches import Matches
from alignmask.pictures.files import save_figure
from alignmask.pictures.fonts import lettering

COLUMNS = 4
MAKER = "alignmask calibrate"


def groups(
    matches: Matches, names: Mapping[int, str], *, classes: bool, sizes: bool
) -> dict[str, Matches]:
    """All predictions, and on request those of each class and of each size, without empty
    groups."""
    found = {"all": matches}
    if sizes:
        found |= {size: of_size(matches, size) for size in ("small", "medium", "large")}
    ids = matches.category_ids if classes else ()
    for category_id, written in zip(ids, lettering([names[k] for k in ids]), strict=True):
        name = written.text
        found[f"{name} ({category_id})" if name in found else name] = of_class(matches, category_id)
    return {name: group for name, group in found.items() if name == "all" or len(group.scores_N)}


def reliability_diagram(matches: Mapping[str, Matches], out_png: Path) -> None:
    """One panel for each group: mean IoU by score, the diagonal of a calibrated score, and how many
    predictions there are.

    Args:
        matches: At any overlap, by the name of the group.

    Raises FileExistsError rather than replace another picture.
    """
    columns = min(COLUMNS, len(matches))
    rows = -(-len(matches) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.6, 3.2 * rows + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    names = lettering(list(matches), "group")
    for panel, name, group in zip(panels, names, matches.values(), strict=False):
        _draw(panel, reliability(group))
        # The names of classes are no formulas, whatever dollar signs they have.
        panel.set_title(
            f"{name.text}: {len(group.scores_N)}",
            fontsize=9,
            fontfamily=name.families,
            parse_math=False,
        )
    for panel in panels[len(matches) :]:
        panel.set_visible(False)
    panels[0].set(xlabel="score", ylabel="mean IoU, share of predictions")
    panels[0].legend(fontsize=7, loc="upper left")
    save_figure(figure, out_png, MAKER)


def _draw(panel: Axes, diagram: Reliability) -> None:
    total = max(sum(diagram.predictions), 1)
    panel.bar(
        EDGES[:-1],
        np.array(diagram.predictions) / total,
        1 / BINS,
        align="edge",
        color="0.8",
        label="share",
    )
    panel.plot((0, 1), (0, 1), color="0.5", linestyle="--", linewidth=1)
    bins = [b for b in range(BINS) if diagram.predictions[b]]
    x, y = ([values[b] for b in bins] for values in (diagram.mean_score, diagram.mean_iou))
    panel.plot(x, y, marker=".", color="tab:blue", label="mean IoU")  # type: ignore[arg-type]
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.grid(alpha=0.3)
