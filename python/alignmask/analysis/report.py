"""Pictures of a run: predictions beside ground truth, loss curve, score against IoU (Fig. 4).

Shapes: N instances or predictions, H x W pixels.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure  # drawn by Agg: no display, no global state
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from alignmask.analysis.alignment import (
    INTERVALS,
    IoU,
    ScoreIoU,
    pearson,
    score_interval,
    score_iou_pairs,
    score_span,
    top_predictions,
)
from alignmask.analysis.drawing import Drawable, draw_instances, font
from alignmask.data import CocoError
from alignmask.eval.files import ResultsLike, group_by_image, load_ground_truth, load_results
from alignmask.model.config import SHOWN_SCORE

if TYPE_CHECKING:
    from alignmask.data import CocoDataset

__all__ = [
    "Predictions",
    "comparison_sheet",
    "draw_instances",
    "loss_curve",
    "results_sheet",
    "run_pictures",
    "score_iou_scatter",
]

MANY_POINTS = 5_000
"""From so many points on, a scatter shows their density instead."""


@dataclass(frozen=True)
class Predictions:
    """Predictions read from a results file, for drawing."""

    scores_N: np.ndarray
    labels_N: np.ndarray
    masks_NHW: np.ndarray


def comparison_sheet(
    rows: Sequence[tuple[np.ndarray, Drawable, Drawable]],
    class_names: Sequence[str],
    out_png: Path,
    *,
    threshold: float = SHOWN_SCORE,
    cell: int = 384,
    pairs_per_row: int = 2,
) -> None:
    """Writes one picture with ground truth (left) beside prediction (right) for several images.

    Args:
        rows: (image_HWC uint8 RGB, ground truth, prediction) of each image.
        threshold: Predictions with a lower score are left out.
        cell: Side of the square that each image is fitted into, pixels.
    Raises:
        ValueError: there is nothing to show.
    """
    if not rows:
        raise ValueError("comparison_sheet: expected at least one image, got none")
    gap, head = 6, 28
    pairs = min(pairs_per_row, len(rows))
    titles = ("ground truth", f"prediction (score ≥ {threshold:g})")
    lines = [rows[start : start + pairs] for start in range(0, len(rows), pairs)]
    heights = [max(round(cell * image.shape[0] / max(image.shape[:2])) for image, _, _ in line) for line in lines]
    sheet = Image.new("RGB", (pairs * (2 * cell + 2 * gap) + gap, head + sum(heights) + gap * len(lines)), "white")
    draw = ImageDraw.Draw(sheet)
    y = head
    for line, height in zip(lines, heights, strict=True):
        for pair, (image_HWC, *both) in enumerate(line):
            for side, instances in enumerate(both):
                x = gap + pair * (2 * cell + 2 * gap) + side * (cell + gap // 2)
                if y == head:
                    draw.text((x + cell / 2, head / 2), titles[side], font=font(15), fill="black", anchor="mm")
                picture = draw_instances(image_HWC, instances, class_names, threshold=threshold, min_side=cell)
                picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(picture, (x + (cell - picture.width) // 2, y))
        y += height + gap
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png)


def results_sheet(
    dataset: CocoDataset,
    results: ResultsLike,
    out_png: Path,
    *,
    images: int = 8,
    threshold: float = SHOWN_SCORE,
    **options: Any,
) -> None:
    """A comparison sheet of images of a data set, evenly spread over it, with predictions from a results file.

    Args:
        results: COCO results file of that data set, or its entries.
        images: So many are shown; those with ground truth are preferred.
        options: as `comparison_sheet` takes them.
    """
    by_image = group_by_image(load_results(results, load_ground_truth(dataset.annotations)).entries)
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    samples = [dataset.load(int(i)) for i in np.linspace(0, len(dataset) - 1, min(2 * images, len(dataset)))]
    samples.sort(key=lambda sample: len(sample.labels_N) == 0)  # stable: the data set's order within each group
    rows = []
    for sample in samples[:images]:
        mine = by_image.get(sample.image_id, [])
        masks_NHW = np.zeros((len(mine), *sample.size), bool)
        for n, entry in enumerate(mine):
            masks_NHW[n] = mask_utils.decode(entry["segmentation"])
        prediction = Predictions(
            np.array([entry["score"] for entry in mine], float),
            np.array([label_of[entry["category_id"]] for entry in mine], np.int64),
            masks_NHW,
        )
        rows.append((sample.image_CHW.permute(1, 2, 0).numpy(), sample, prediction))
    comparison_sheet(rows, dataset.class_names, out_png, threshold=threshold, **options)


def loss_curve(metrics_jsonl: Path, out_png: Path) -> None:
    """Plots a run's metrics.jsonl: total loss and its parts; below it the evaluations' mask AP, if there were any.

    Raises:
        CocoError: the file cannot be read, a line is broken (the last one may be: a killed run leaves it so), or
            neither a step nor an evaluation is logged.
    """
    losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
    ap: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in _lines(metrics_jsonl):
        if "eval" in line:
            for mode, values in line["eval"]["modes"].items():
                value = values["metrics"]["AP"]
                ap[mode].append((line["step"], 100 * value if value >= 0 else math.nan))  # -1: no ground truth
        else:
            for name, value in line.items():
                if name not in NOT_LOSSES and isinstance(value, (int, float)):
                    losses[name].append((line["step"], value))
    heights = [3] * bool(losses) + [2] * bool(ap)
    if not heights:
        raise CocoError(f"{metrics_jsonl}: neither a step nor an evaluation is logged")
    figure = Figure(figsize=(8, 1 + 1.5 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
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
        best = max((value for points in ap.values() for _, value in points if value > 0), default=1.0)
        panels[-1].set_ylim(0, 1.15 * best)
    panels[-1].set(xlabel="step")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, ncols=2)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)


NOT_LOSSES = ("step", "time", "lr", "it_per_s", "grad_norm")
"""Numbers of a metrics.jsonl line that are no losses."""


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
    """Plots mask IoU against score of the most confident predictions (Fig. 4), with the mean IoU of each score
    interval: one panel for each model.

    Args:
        models: By name (a panel's title); "" shows none.
        fraction: So much of 100 predictions per image is shown; see `alignment.top_predictions`.
        iou: With the best ground truth of the predicted class, or of any.
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
    for (name, pairs), panel in zip(models.items(), panels, strict=False):  # panels last: the rest of them is left over
        top = shown[name]
        score_N, iou_N = pairs.scores_N[top], pairs.iou(iou)[top]
        if dense:
            extent = (low, high, 0, 1)
            densities.append(panel.hexbin(score_N, iou_N, gridsize=60, extent=extent, mincnt=1, cmap="viridis"))
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
            xlim=(low - margin, high + margin), ylim=(-0.02, 1.02), title=f"{_fit(name)}\n{heading}" if name else heading,
        )  # fmt: skip
        panel.label_outer()
        if panel.lines:
            panel.legend(loc="upper left", fontsize=8)
    for panel in panels:  # the last row may have more of them than there are models
        panel.axis("off")
    if dense:  # one scale of colours for all panels, or they could not be compared
        most = max((density.get_array().max() for density in densities if len(density.get_array())), default=1)
        for density in densities:
            density.set_norm(LogNorm(1, max(most, 2)))
        figure.colorbar(densities[0], ax=figure.axes, label="predictions")
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)


PANELS_PER_ROW = 3


def _draw_means(panel: Axes, score_N: np.ndarray, iou_N: np.ndarray) -> None:
    panel.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="score = IoU", zorder=3)
    interval_N = score_interval(score_N)
    means = [((k + 0.5) / INTERVALS, iou_N[interval_N == k].mean()) for k in np.unique(interval_N)]
    if means:
        panel.plot(*zip(*means, strict=True), color="tab:red", marker="o", markersize=4, label="mean IoU", zorder=4)


def _fit(name: str, length: int = 48) -> str:
    """The name as it can stand above a panel: its end, if it is long, and no dollar sign (they enclose formulas)."""
    return (name if len(name) <= length else "…" + name[1 - length :]).replace("$", r"\$")


def run_pictures(
    run: Path, dataset: CocoDataset, out: Path, *, images: int = 8, threshold: float = SHOWN_SCORE
) -> dict[str, Path]:
    """Draws what a run's folder holds: predictions beside ground truth, losses, score against IoU.

    Args:
        run: Folder of a run with metrics.jsonl, and results.json of its last evaluation.
        dataset: The validation data.
        out: Folder to write the PNGs to.
    Returns:
        The files by what they show.
    """
    ground_truth = load_ground_truth(dataset.annotations)
    results = load_results(run / "results.json", ground_truth)
    pictures = {
        "predictions beside ground truth": out / "predictions.png",
        "loss": out / "loss.png",
        "score against IoU": out / "score_iou.png",
    }
    sheet, curve, scatter = pictures.values()
    results_sheet(dataset, results, sheet, images=images, threshold=threshold)
    loss_curve(run / "metrics.jsonl", curve)
    score_iou_scatter({"": score_iou_pairs(ground_truth, results, image_ids=dataset.image_ids)}, scatter)
    return pictures
