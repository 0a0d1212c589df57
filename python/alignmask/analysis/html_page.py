"""One HTML file that shows several models' predictions: tables, plots, and every plotted prediction
on its image.

It needs nothing but itself: the plots are Bokeh's, whose scripts are in the page, and a content
security policy keeps the page from loading anything and from running any other script. Its parts
are in `assets/`. What it embeds is bounded: POINTS predictions of each model, PICTURE_BYTES of
pictures, about MASK_BYTES of masks.

Shapes: N predictions of one model that are plotted, best first; H x W pixels.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import (
    BooleanFilter,
    CDSView,
    ColumnDataSource,
    DataTable,
    NumberFormatter,
    Range1d,
    TableColumn,
)
from bokeh.plotting import figure
from bokeh.resources import Resources
from PIL import Image
from pycocotools import mask as mask_utils

from alignmask._files import replacing
from alignmask._printing import counted
from alignmask.analysis.measure import ModelAnalysis
from alignmask.evaluation.alignment import FRACTIONS, NO_TRUTH, score_span, top_predictions
from alignmask.evaluation.metrics import NUMBERS, headings, limit_note, with_limit
from alignmask.evaluation.results_file import GroundTruth
from alignmask.pictures.drawing import OVERLAP, PREDICTION, TRUTH

if TYPE_CHECKING:
    from bokeh.models import UIElement

    from alignmask.data import CocoDataset

POINTS = 50_000
"""Predictions of each model: the paper's top 10 % of 5,000 images."""
PICTURE_BYTES = 64 << 20
MASK_BYTES = 32 << 20
SIDES = (640, 480, 360, 280, 220, 160)
"""Longer side of the pictures, pixels: the largest one with which they are likely to fit
PICTURE_BYTES."""

ASSETS = Path(__file__).parent / "assets"
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
COLUMNS = (
    {"title": "PCC", "field": "pcc_"},
    {"title": "Spearman", "field": "spearman_"},
    {"title": "ECE", "field": "calibration_error_"},
    {"title": "mean score", "field": "mean_score"},
    {"title": "mean IoU", "field": "mean_iou_"},
)


def write_page(
    models: Sequence[ModelAnalysis],
    ground_truth: GroundTruth,
    dataset: CocoDataset | None,
    sheets: Sequence[Image.Image],
    out_html: Path,
    *,
    fraction: float = 0.10,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the page, atomically.

    Args:
        dataset: The images. If None, masks are shown on grey.
        sheets: A picture of the rank inversions of each model.
        fraction: Share of 100 predictions per image that is plotted, the most confident ones.
        progress: Called with (images done, images).
    Raises:
        ImageError: an image cannot be read.
    """
    album = _Album(ground_truth, dataset)
    tops = [top_predictions(model.pairs, fraction)[:POINTS] for model in models]
    span = score_span(model.pairs.scores_N[top] for model, top in zip(models, tops, strict=True))
    plots = [
        _plot(album.columns(model, top), span) for model, top in zip(models, tops, strict=True)
    ]
    scripts = [
        *Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"]).js_raw
    ]
    scripts = [*scripts, (ASSETS / "page.js").read_text(encoding="utf-8")]
    numbers = {
        round(f * 100 * len(ground_truth.sizes)): f for f in (*FRACTIONS, fraction) if f <= fraction
    }
    notes = [
        f"{model.name}: the {len(top)} most confident predictions are plotted, because a page "
        "cannot hold more"
        for model, top in zip(models, tops, strict=True)
        if len(top) == POINTS < len(top_predictions(model.pairs, fraction))
    ]
    instances = sum(not annotation["iscrowd"] for annotation in ground_truth.annotations)
    limit_notes = [
        f"{model.name}: {note}"
        for model in models
        if (note := limit_note(model.images_over_limit, model.metrics.max_detections))
    ]
    template = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FileSystemLoader(ASSETS),
    ).get_template("page.html")
    stream = template.stream(
        policy=_policy(scripts),
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        cell=_cell,
        annotations=ground_truth.source,
        size=", ".join(
            (
                counted(len(ground_truth.sizes), "image"),
                f"{counted(instances, 'instance')} of "
                f"{counted(len(ground_truth.categories), 'class', 'classes')}",
            )
        ),
        categories=list(ground_truth.categories.values()),
        ap_title=with_limit("Mask AP (%)", [model.metrics for model in models]),
        ap_names=[
            name
            for name, official in zip(
                headings(model.metrics for model in models), NUMBERS, strict=True
            )
            if official in AP_NAMES
        ],
        columns=COLUMNS,
        fractions=[f"{100 * top.fraction:g}" for top in models[0].alignment.top],
        shares=[
            (f"{100 * share:g}", count) for count, share in sorted(numbers.items(), reverse=True)
        ],
        models=[_summary(model, sheet) for model, sheet in zip(models, sheets, strict=True)],
        classes=_classes(models, ground_truth),
        notes=notes,
        limit_notes=limit_notes,
        report=_block(
            {
                "models": [model.name for model in models],
                "categories": list(ground_truth.categories.values()),
                "images": album.image_ids,
                "colours": [TRUTH, PREDICTION, OVERLAP],
                "pictureless": "no images were given"
                if dataset is None
                else "left out: the page cannot hold more",
            }
        ),
        plots=map(_block, plots),
        pictures=map(_block, album.pictures(progress)),
    )
    stream.enable_buffering(64)
    with replacing(out_html) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(stream)


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy that allows only these scripts, and nothing from elsewhere."""
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _block(value: Any) -> str:
    """JSON for a <script> element of data: nothing in it can end the element, or begin a
    comment."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _cell(value: float | None, digits: int) -> jinja2.utils.markupsafe.Markup:
    """A table cell that sorts by the number's full precision."""
    markup = jinja2.utils.markupsafe.Markup
    if value is None:
        return markup('<td data-value="">–</td>')
    return markup('<td data-value="{}">{}</td>').format(repr(float(value)), f"{value:.{digits}f}")


def _summary(model: ModelAnalysis, sheet: Image.Image) -> dict[str, Any]:
    ranked = [model.metrics.AP, model.by_iou.AP, model.oracle.AP]
    return {
        "name": model.name,
        "ap": [
            *(_percent(getattr(model.metrics, name)) for name in AP_NAMES),
            *map(_percent, ranked[1:]),
            None if ranked[0] < 0 else 100 * (ranked[2] - ranked[0]),
        ],
        "top": [asdict(top) for top in model.alignment.top],
        "sheet": _jpeg(sheet, 85),
    }


def _classes(models: Sequence[ModelAnalysis], ground_truth: GroundTruth) -> list[dict[str, Any]]:
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


def _plot(columns: dict[str, np.ndarray], span: tuple[float, float]) -> dict[str, Any]:
    """A scatter of IoU against score (from `span`) and a table of the same points, as Bokeh's JSON.
    It holds numbers only: page.js adds the names."""
    margin = 0.02 * (span[1] - span[0])
    source = ColumnDataSource(columns, name="points")
    kept = BooleanFilter(booleans=None, name="kept")
    view = CDSView(filter=kept, name="view")
    plot = figure(
        name="figure", height=430, sizing_mode="stretch_width", x_range=Range1d(span[0] - margin, span[1] + margin),
        y_range=Range1d(-0.02, 1.02), x_axis_label="score", y_axis_label="mask IoU with the best ground truth",
        tools="box_zoom,wheel_zoom,pan,reset,save", active_drag="box_zoom",
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.line([0, 1], [0, 1], color="black", line_dash="dashed", line_width=1)
    points = len(columns["score"])
    dots = plot.scatter(
        "score", "iou", source=source, view=view, size=5 if points > 5_000 else 7, line_color=None,
        fill_alpha=0.2 if points > 5_000 else 0.45,
    )  # fmt: skip
    dots.nonselection_glyph = None  # the others stay as they are
    dots.selection_glyph = dots.glyph.clone(
        fill_color="crimson", fill_alpha=1.0, line_color="white", size=12
    )
    for text in (plot.xaxis, plot.yaxis):
        text.axis_label_text_font_style = "normal"
        text.axis_label_text_font_size, text.major_label_text_font_size = "14px", "12px"
    number, count = (
        NumberFormatter(format="0.000", text_align="right"),
        NumberFormatter(format="0", text_align="right"),
    )
    table = DataTable(
        source=source, view=view, height=280, sizing_mode="stretch_width", index_position=None, row_height=24,
        reorderable=False,
        columns=[
            TableColumn(field="category", title="class", width=120),
            TableColumn(field="score", title="score", formatter=number, width=60),
            TableColumn(field="iou", title="IoU", formatter=number, width=60),
            TableColumn(field="gap", title="score − IoU", formatter=number, width=80, default_sort="descending"),
            TableColumn(field="area", title="pixels", formatter=count, width=70),
            TableColumn(field="image", title="image id", formatter=count, width=90),
        ],
    )  # fmt: skip
    layout: UIElement = column(plot, table, sizing_mode="stretch_width")
    return dict(json_item(layout))


class _Album:
    """The images with predictions that are plotted, each with its picture, its masks and its ground
    truth.

    Images are numbered in the order of their most confident prediction.
    """

    def __init__(self, ground_truth: GroundTruth, dataset: CocoDataset | None) -> None:
        self.ground_truth, self.dataset = ground_truth, dataset
        self.image_ids: list[int] = []
        self._number: dict[int, int] = {}
        self._masks: list[dict[bytes, int]] = []
        """Of each image: number of each mask, by its counts. The same mask is often there under
        several classes."""
        self._place = (
            {} if dataset is None else {image_id: n for n, image_id in enumerate(dataset.image_ids)}
        )

    def columns(self, model: ModelAnalysis, top_N: np.ndarray) -> dict[str, np.ndarray]:
        """The predictions at these positions of the results, for plotting."""
        pairs = model.pairs
        label_of = {category: label for label, category in enumerate(self.ground_truth.categories)}
        picture_N, mask_N, area_N, same_N, any_N = np.zeros((5, len(top_N)), np.int32)
        for n, position in enumerate(top_N):
            entry = model.results.entries[position]
            image_id, segmentation = entry["image_id"], entry["segmentation"]
            if image_id not in self._number:
                self._number[image_id] = len(self.image_ids)
                self.image_ids.append(image_id)
                self._masks.append({})
            picture_N[n] = self._number[image_id]
            masks = self._masks[picture_N[n]]
            mask_N[n] = masks.setdefault(segmentation["counts"], len(masks))
            area_N[n] = mask_utils.area(segmentation)
            same_N[n] = self._truth_number(int(pairs.truth_same_class_N[position]))
            any_N[n] = self._truth_number(int(pairs.truth_any_class_N[position]))
        score_N, iou_N = (
            pairs.scores_N[top_N].astype(np.float32),
            pairs.iou_same_class_N[top_N].astype(np.float32),
        )
        return {
            "score": score_N,
            "iou": iou_N,
            "gap": score_N - iou_N,
            "same": iou_N,
            "any": pairs.iou_any_class_N[top_N].astype(np.float32),
            "label": np.array(
                [label_of[category] for category in pairs.category_ids_N[top_N]], np.int32
            ),
            "area": area_N,
            "picture": picture_N,
            "mask": mask_N,
            "truth_same": same_N,
            "truth_any": any_N,
        }

    @functools.cached_property
    def _truth_numbers(self) -> dict[int, int]:
        """Of each annotation by id: its place among the instances of its image."""
        return {
            annotation["id"]: number
            for image_id in self.ground_truth.by_image
            for number, annotation in enumerate(self._truths(image_id))
        }

    def _truth_number(self, annotation_id: int) -> int:
        return -1 if annotation_id == NO_TRUTH else self._truth_numbers[annotation_id]

    def _truths(self, image_id: int) -> list[dict[str, Any]]:
        return [a for a in self.ground_truth.by_image.get(image_id, []) if not a["iscrowd"]]

    def pictures(
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The record of each image, one after the other."""
        side, step = self._picture_side(), self._mask_step()
        label_of = {category: label for label, category in enumerate(self.ground_truth.categories)}
        left = PICTURE_BYTES
        for number, image_id in enumerate(self.image_ids):
            if progress is not None:
                progress(number, len(self.image_ids))
            size = self.ground_truth.sizes[image_id]
            shrunk = max(step, math.ceil(max(size) / max(SIDES)))
            jpeg = self._picture(image_id, side) if left > 0 else ""
            left -= len(jpeg)
            yield {
                "name": ""
                if self.dataset is None
                else self.dataset.file_name(self._place[image_id]),
                "id": image_id,
                "jpeg": jpeg if left > 0 else "",
                "size": [math.ceil(length / shrunk) for length in size],
                "truths": [
                    {
                        "label": label_of[a["category_id"]],
                        "counts": _shrunk(a["segmentation"]["counts"], size, shrunk),
                    }
                    for a in self._truths(image_id)
                ],
                "masks": [_shrunk(counts, size, shrunk) for counts in self._masks[number]],
            }
        if progress is not None:
            progress(len(self.image_ids), len(self.image_ids))

    def _picture(self, image_id: int, side: int) -> str:
        """JPEG as base64."""
        if self.dataset is None:
            return ""
        picture = Image.fromarray(
            self.dataset.load(self._place[image_id]).image_CHW.permute(1, 2, 0).numpy()
        )
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _jpeg(picture, 70)

    def _picture_side(self) -> int:
        if self.dataset is None or not self.image_ids:
            return SIDES[0]
        samples = [
            self.image_ids[n]
            for n in np.unique(np.linspace(0, len(self.image_ids) - 1, 12).astype(int))
        ]
        for side in SIDES:
            bytes_each = sum(len(self._picture(image_id, side)) for image_id in samples) / len(
                samples
            )
            if 1.1 * bytes_each * len(self.image_ids) <= PICTURE_BYTES:
                return side
        return SIDES[-1]

    def _mask_step(self) -> int:
        """The step n for which every n-th row and column of the masks is kept; their encodings
        shrink in proportion."""
        masks = sum(len(counts) for counts_of_image in self._masks for counts in counts_of_image)
        truths = sum(
            len(a["segmentation"]["counts"])
            for image_id in self.image_ids
            for a in self._truths(image_id)
        )
        return max(1, math.ceil((masks + truths) / MASK_BYTES))


def _shrunk(counts: bytes, size: tuple[int, int], step: int) -> str:
    """A mask's run-length encoding with every step-th row and column."""
    if step == 1:
        return counts.decode("ascii")
    mask_HW = mask_utils.decode({"size": list(size), "counts": counts})
    return mask_utils.encode(np.asfortranarray(mask_HW[::step, ::step]))["counts"].decode("ascii")


def _jpeg(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
