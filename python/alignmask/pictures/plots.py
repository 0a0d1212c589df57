"""Plots: a run's losses and evaluations, and score against IoU (Fig. 4).

Shapes: N predictions.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure  # drawn by Agg: no display, no global state
from matplotlib.ticker import LogLocator, NullFormatter

from alignmask.data import CocoError
from alignmask.evaluation.alignment import (
    INTERVALS,
    IoU,
    ScoreIoU,
    pearson,
    score_interval,
    score_span,
    top_predictions,
)
from alignmask.pictures.fonts import lettering

MANY_POINTS = 5_000
"""With more points than this, a scatter plot shows their density instead."""


def loss_curve(metrics_jsonl: Path, out_png: Path) -> None:
    """Plot a run's metrics.jsonl: total loss and its parts, and below them the mask AP of the
    evaluations, if any.

    Raises:
        CocoError: The file cannot be read, a line is broken (except for the last one, which a
            killed run can leave incomplete), or neither a step nor an evaluation is logged.
    """
    losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
    ap: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in _lines(metrics_jsonl):
        if "eval" in line:
            for mode, values in line["eval"]["modes"].items():
                value = values["metrics"]["AP"]
                # -1: no ground truth.
                ap[mode].append((line["step"], 100 * value if value >= 0 else math.nan))
        else:
            for name, value in line.items():
                if name not in NOT_LOSSES and isinstance(value, (int, float)):
                    losses[name].append((line["step"], value))
    heights = [3] * bool(losses) + [2] * bool(ap)
    if not heights:
        raise CocoError(f"{metrics_jsonl}: neither a step nor an evaluation is logged")
    figure = Figure(figsize=(8, 1 + 1.5 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[
        :, 0
    ]
    if losses:
        panels[0].set(ylabel="loss", yscale="log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    for name, points in losses.items():
        style = {"color": "black", "linewidth": 2.2} if name == "loss" else {"linewidth": 1.2}
        panels[0].plot(*zip(*points, strict=True), label=name, **style)
    for mode, points in ap.items():
        last = "no ground truth" if math.isnan(points[-1][1]) else f"{points[-1][1]:.1f} at last"
        panels[-1].plot(*zip(*points, strict=True), marker="o", label=f"score {mode}: {last}")
    if ap:
        panels[-1].set(ylabel="mask AP (%)")
        best = max(
            (value for points in ap.values() for _, value in points if value > 0), default=1.0
        )
        panels[-1].set_ylim(0, 1.15 * best)
    panels[-1].set(xlabel="step")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, ncols=2)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)


NOT_LOSSES = ("step", "time", "lr", "it_per_s", "grad_norm")
"""Numbers of a metrics.jsonl line that are not losses."""


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CocoError(f"{path}: cannot be read: {error.strerror}") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise CocoError(f"{path}, line {number}: not valid JSON: {error}") from error
            continue
        if not isinstance(line, dict) or "step" not in line:
            raise CocoError(f"{path}, line {number}: expected an object with a step")
        lines.append(line)
    return lines


def score_iou_scatter(
    models: Mapping[str, ScoreIoU],
    out_png: Path,
    *,
    fraction: float = 0.10,
    iou: IoU = "same class",
) -> None:
    """Plot mask IoU against score of the most confident predictions (Fig. 4), with the mean IoU of
    each score interval, in one panel for each model.

    Args:
        models: By name, which is the title of the panel; "" shows no title.
        fraction: Share of 100 predictions per image that is shown; see `alignment.top_predictions`.
        iou: The IoU with the best ground truth of the predicted class, or of any class.
    """
    columns = min(len(models), PANELS_PER_ROW)
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(0.6 + 5.4 * columns, 5.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    shown = {name: top_predictions(pairs, fraction) for name, pairs in models.items()}
    dense = max(map(len, shown.values())) > MANY_POINTS
    low, high = score_span(pairs.scores_N[shown[name]] for name, pairs in models.items())
    margin = 0.02 * (high - low)
    densities = []
    # Panels last: the rest of them is left over.
    titles = lettering(list(models), "model")
    for (name, pairs), title, panel in zip(models.items(), titles, panels, strict=False):
        top = shown[name]
        score_N, iou_N = pairs.scores_N[top], pairs.iou(iou)[top]
        if dense:
            extent = (low, high, 0, 1)
            densities.append(
                panel.hexbin(score_N, iou_N, gridsize=60, extent=extent, mincnt=1, cmap="viridis")
            )
        else:
            panel.scatter(score_N, iou_N, s=9, alpha=0.35, linewidths=0)
            panel.grid(alpha=0.3)
        if (low, high) == (0, 1):
            _draw_means(panel, score_N, iou_N)
        correlation = pearson(score_N, iou_N)
        pcc = "not defined" if correlation is None else f"{correlation:.3f}"
        heading = f"PCC {pcc}   (top {100 * fraction:g} %: {len(top)} predictions)"
        panel.set(
            xlabel="score", ylabel=f"mask IoU with the best ground truth ({iou})",
            xlim=(low - margin, high + margin), ylim=(-0.02, 1.02),
        )  # fmt: skip
        panel.set_title(
            f"{_fit(title.text)}\n{heading}" if name else heading, fontfamily=title.families
        )
        panel.label_outer()
        if panel.lines:
            panel.legend(loc="upper left", fontsize=8)
    for panel in panels:  # the last row may have more of them than there are models
        panel.axis("off")
    if dense:  # one scale of colours for all panels, or they could not be compared
        most = max(
            (density.get_array().max() for density in densities if len(density.get_array())),
            default=1,
        )
        for density in densities:
            density.set_norm(LogNorm(1, max(most, 2)))
        figure.colorbar(densities[0], ax=figure.axes, label="predictions")
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)


PANELS_PER_ROW = 3


def _draw_means(panel: Axes, score_N: np.ndarray, iou_N: np.ndarray) -> None:
    panel.plot(
        [0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="score = IoU", zorder=3
    )
    interval_N = score_interval(score_N)
    means = [((k + 0.5) / INTERVALS, iou_N[interval_N == k].mean()) for k in np.unique(interval_N)]
    if means:
        panel.plot(
            *zip(*means, strict=True),
            color="tab:red",
            marker="o",
            markersize=4,
            label="mean IoU",
            zorder=4,
        )


def _fit(name: str, length: int = 48) -> str:
    """The name as a panel's title: only its end, if it is long, and with dollar signs escaped,
    which would enclose formulas."""
    return (name if len(name) <= length else "…" + name[1 - length :]).replace("$", r"\$")
