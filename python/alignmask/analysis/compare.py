"""Several models' predictions on one data set, side by side: measured, and written as JSON,
pictures and a page.

Shapes: N predictions, H x W pixels.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as mask_utils

from alignmask._files import write_json
from alignmask.analysis.differences import PERCENT
from alignmask.analysis.inversions import Panel, inversion_sheet
from alignmask.analysis.measure import ModelAnalysis
from alignmask.evaluation.alignment import (
    IoU,
)
from alignmask.evaluation.calibration import calibration_table
from alignmask.evaluation.duplicates import REMOVED, duplicates_table
from alignmask.evaluation.metrics import limit_note, percent, with_limit
from alignmask.evaluation.results_file import GroundTruth
from alignmask.evaluation.tables import number_table
from alignmask.pictures.fonts import DEJAVU, lettering
from alignmask.pictures.plots import score_iou_scatter

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from alignmask.data import CocoDataset

BESIDE = string.ascii_letters + string.digits + " .:()…"
"""What is written beside names of classes and models."""


NUMBERS, PAGE = "analysis.json", "report.html"
SCATTERS: dict[IoU, str] = {
    "same class": "score_iou_same_class.png",
    "any class": "score_iou_any_class.png",
}


def write_analysis(
    models: Sequence[ModelAnalysis],
    ground_truth: GroundTruth,
    dataset: CocoDataset | None,
    out: Path,
    *,
    fraction: float = 0.10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Write analysis.json, the pictures and report.html.

    Args:
        dataset: The images. If None, masks are shown on grey.
        fraction: Share of 100 predictions per image that is plotted, the most confident ones.
        progress: Called with (images done, images) while the page is written.
    Returns:
        The files that were written, by what they show.
    """
    from alignmask.analysis.html_page import write_page

    files = {"numbers": out / NUMBERS}
    write_json(files["numbers"], {"models": [model.as_dict() for model in models]}, indent=2)
    for kind, name in SCATTERS.items():
        file = files[f"score against IoU ({kind})"] = out / name
        score_iou_scatter(
            {model.name: model.pairs for model in models}, file, fraction=fraction, iou=kind
        )
    sheets = []
    titles = lettering([model.name for model in models], "model", BESIDE)
    for number, (model, title) in enumerate(zip(models, titles, strict=True), 1):
        sheet = inversion_sheet(
            _panels(model, ground_truth, dataset),
            title=f"{title.text}: the worst rank inversions",
            title_font=title.file,
        )
        file = files[f"rank inversions of {model.name}"] = (
            out / f"inversions_{number}_{slug(model.name)}.png"
        )
        sheet.save(file)
        sheets.append(sheet)
    files["page"] = out / PAGE
    write_page(
        models, ground_truth, dataset, sheets, files["page"], fraction=fraction, progress=progress
    )
    return files


def slug(name: str) -> str:
    """The name in a form that can be part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name)[-60:]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each path: the last parts of the path that distinguish it, without those that all
    paths end in.

    Raises ValueError if a path occurs twice.
    """
    parts = [path.resolve().parts for path in paths]
    for n, path in enumerate(paths):
        if parts[n] in parts[:n]:
            raise ValueError(f"{path}: named twice")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    alike = 0
    while len(parts) > 1 and len({part[-alike - 1] for part in parts}) == 1:
        alike += 1
    return ["/".join(part[-length : len(part) - alike]) for part in parts]


def analysis_table(models: Sequence[ModelAnalysis]) -> Group:
    """COCO's AP with its head-room, and Table 2, with one line for each model, to be printed by
    rich."""
    from rich.console import Group
    from rich.text import Text

    title = with_limit("mask AP (%), by score and by IoU", [model.metrics for model in models])
    ignored = [model.results.ignored for model in models]
    if removed := [str(counts[REMOVED]) for counts in ignored if REMOVED in counts]:
        title += f"; removed by suppression: {', '.join(removed)}"
    quality = number_table(
        title, "AP", "AP50", "AP75", "by IoU", "by IoU*", "head-room",
        first="model", caption="* duplicates last: a perfect ranking",
    )  # fmt: skip
    for model in models:
        metrics, best = model.metrics, model.oracle.AP
        shown = [
            percent(value)
            for value in (metrics.AP, metrics.AP50, metrics.AP75, model.by_iou.AP, best)
        ]
        quality.add_row(
            model.name, *shown, "-" if best < 0 else f"{100 * (best - metrics.AP):+.1f}"
        )
    tables: list[RenderableType] = [quality]
    notes = {
        model.name: limit_note(model.images_over_limit, model.metrics.max_detections)
        for model in models
    }
    if any(notes.values()):
        lines = [f"{name}: {note}\n" for name, note in notes.items() if note]
        tables.append(Text("".join(lines)))
    for words, kind in (("same", "same_class"), ("any", "any_class")):
        title = f"the most confident predictions and the best ground truth of {words} class"
        names = ("top", "number", "PCC", "Spearman", "ECE", "mean score", "mean IoU")
        table = number_table(title, *names, first="model")
        tables.append(table)
        for model in models:
            for top in model.alignment.top:
                values = [
                    getattr(top, f"{name}_{kind}")
                    for name in ("pcc", "spearman", "calibration_error")
                ]
                values += [top.mean_score, getattr(top, f"mean_iou_{kind}")]
                shown = ["-" if value is None else f"{value:.3f}" for value in values]
                table.add_row(model.name, f"{100 * top.fraction:g} %", str(top.predictions), *shown)
    if len(models) > 1:
        title = f"differences to {models[0].name}, with 95 % intervals over images"
        table = number_table(title, "measure", "difference", first="model")
        for model in models[1:]:
            for name, entry in model.difference.items():
                percents = name in PERCENT
                text = entry.signed_percent() if percents else entry.signed()
                table.add_row(model.name, f"{name} (%)" if percents else name, text)
        tables.append(table)
    tables.append(duplicates_table({model.name: model.duplicates for model in models}, "model"))
    tables.append(calibration_table({model.name: model.calibration for model in models}, "model"))
    return Group(*tables)


def _panels(
    model: ModelAnalysis, ground_truth: GroundTruth, dataset: CocoDataset | None
) -> list[tuple[Panel, Panel]]:
    truths = {annotation["id"]: annotation for annotation in ground_truth.annotations}
    place = {} if dataset is None else {image_id: n for n, image_id in enumerate(dataset.image_ids)}
    names = list(ground_truth.categories.values())
    written = dict(zip(ground_truth.categories, lettering(names, beside=BESIDE), strict=True))
    panels = []
    for inversion in model.inversions:
        if dataset is not None:
            image_HWC = dataset.load(place[inversion.image_id]).image_CHW.permute(1, 2, 0).numpy()
        else:
            image_HWC = np.full((*ground_truth.sizes[inversion.image_id], 3), 128, np.uint8)

        def panel(n: int, image_HWC: np.ndarray = image_HWC) -> Panel:
            entry, pairs = model.results.entries[n], model.pairs
            truth = truths[pairs.truth_any_class_N[n]]
            name, true_name = (written[record["category_id"]] for record in (entry, truth))
            what = name.text if name == true_name else f"{name.text} (on {true_name.text})"
            return Panel(
                image_HWC,
                mask_utils.decode(truth["segmentation"]).astype(bool),
                mask_utils.decode(entry["segmentation"]).astype(bool),
                f"score {pairs.scores_N[n]:.2f}   IoU {pairs.iou_any_class_N[n]:.2f}   {what}",
                true_name.file if name.file == DEJAVU else name.file,
            )

        panels.append((panel(inversion.high), panel(inversion.low)))
    return panels
