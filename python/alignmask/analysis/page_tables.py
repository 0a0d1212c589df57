"""The tables of a page: numbers, their headings, and notes below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2
from PIL import Image

from alignmask._printing import counted
from alignmask.analysis.differences import HIGHER_IS_BETTER, PERCENT
from alignmask.analysis.measure import ModelAnalysis
from alignmask.analysis.page_album import jpeg
from alignmask.evaluation.bootstrap import Estimate
from alignmask.evaluation.calibration import SHOWN
from alignmask.evaluation.errors import KINDS
from alignmask.evaluation.results_file import GroundTruth

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class PageTable:
    """A sortable table with one line for each model."""

    id: str
    title: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Any]]]
    """A name, and ready cells."""
    note: str


def cell(value: float | None, digits: int) -> jinja2.utils.markupsafe.Markup:
    """A table cell that sorts by the number's full precision."""
    markup = jinja2.utils.markupsafe.Markup
    if value is None:
        return markup('<td data-value="">–</td>')
    return markup('<td data-value="{}">{}</td>').format(repr(float(value)), f"{value:.{digits}f}")


def difference_cell(difference: Estimate, percent: bool) -> jinja2.utils.markupsafe.Markup:
    """A table cell of a difference with its interval; one that excludes 0 is bold."""
    markup = jinja2.utils.markupsafe.Markup
    if difference.value is None:
        return markup('<td data-value="">–</td>')
    text = difference.signed_percent() if percent else difference.signed()
    clear = ' class="clear"' if difference.excludes_zero else ""
    return markup('<td{} data-value="{}">{}</td>').format(
        markup(clear), repr(difference.value), text
    )


def more_tables(models: Sequence[ModelAnalysis]) -> list[PageTable]:
    """Differences of the models, errors, second masks and calibration."""
    tables = []
    others = [model for model in models if model.difference]
    if others:
        names = list(others[0].difference)
        tables.append(
            PageTable(
                "differences",
                f"Differences to {models[0].name}, with 95 % intervals",
                [f"{name} (%)" if name in PERCENT else name for name in names],
                [
                    (
                        model.name,
                        [difference_cell(model.difference[n], n in PERCENT) for n in names],
                    )
                    for model in others
                ],
                "Of the same images, resampled. A bold difference is one whose interval does not contain 0. "
                + "; ".join(
                    f"{name}: {'higher' if HIGHER_IS_BETTER[name] else 'lower'} is better"
                    for name in names
                )
                + ".",
            )
        )
    tables.append(
        PageTable(
            "errors",
            "AP50 (%) lost to each kind of error",
            ["AP50", *(name for kind in KINDS.values() for name in (kind, "number"))],
            [
                (
                    model.name,
                    [
                        cell(_percent(model.errors.AP50), 1),
                        *(
                            one
                            for kind, lost in model.errors.lost.items()
                            for one in (cell(100 * lost, 1), cell(model.errors.counts[kind], 0))
                        ),
                    ],
                )
                for model in models
            ],
            "How much AP50 would rise if the errors of one kind were mended (TIDE); the gains do not add up.",
        )
    )
    tables.append(
        PageTable(
            "duplicates",
            "Second masks of one object, in % of the predictions",
            [f"{name}{end}" for name in models[0].duplicates for end in ("", ", of")],
            [
                (
                    model.name,
                    [
                        one
                        for entry in model.duplicates.values()
                        for one in (
                            cell(None if entry.share is None else 100 * entry.share, 1),
                            cell(entry.predictions, 0),
                        )
                    ],
                )
                for model in models
            ],
            "Masks that overlap a better-scored one of their class by an IoU of more than 0.5.",
        )
    )
    tables.append(
        PageTable(
            "calibration",
            "The score as a forecast of the IoU",
            list(SHOWN.values()),
            [(model.name, [cell(model.calibration[key], 3) for key in SHOWN]) for model in models],
            "LaECE0, LaACE0, D-ECE50, oLRP with its parts, and Brier75: lower is better. AUROC: higher is better.",
        )
    )
    return tables


def summary(model: ModelAnalysis, sheet: Image.Image) -> dict[str, Any]:
    ranked = [model.metrics.AP, model.by_iou.AP, model.oracle.AP]
    return {
        "name": model.name,
        "ap": [
            *(_percent(getattr(model.metrics, name)) for name in AP_NAMES),
            *map(_percent, ranked[1:]),
            None if ranked[0] < 0 else 100 * (ranked[2] - ranked[0]),
        ],
        "top": [asdict(top) for top in model.alignment.top],
        "sheet": jpeg(sheet, 85),
    }


def classes(models: Sequence[ModelAnalysis], ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Of each category: instances, and each model's AP. (per_category has one entry for each, in
    the same order.)"""
    count = dict.fromkeys(ground_truth.categories, 0)
    for annotation in ground_truth.annotations:
        count[annotation["category_id"]] += not annotation["iscrowd"]
    names = list(models[0].metrics.per_category)
    return [
        {
            "name": name,
            "instances": count[category],
            "ap": [_percent(model.metrics.per_category[name]) for model in models],
        }
        for name, category in zip(names, ground_truth.categories, strict=True)
    ]


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value


def size_of(ground_truth: GroundTruth) -> str:
    """How much there is to find, in words."""
    instances = sum(not annotation["iscrowd"] for annotation in ground_truth.annotations)
    kinds = counted(len(ground_truth.categories), "class", "classes")
    images = counted(len(ground_truth.sizes), "image")
    return f"{images}, {counted(instances, 'instance')} of {kinds}"
