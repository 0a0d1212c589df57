"""One HTML file that shows several models' predictions: tables, plots, and every plotted prediction
on its image.

It needs nothing but itself: the plots are Bokeh's, whose scripts are in the page, and a content
security policy keeps the page from loading anything and from running any other script. Its parts
are in `assets/`, `page_tables`, `page_plots` and `page_album`. What it embeds is bounded: POINTS
predictions of each model, PICTURE_BYTES of pictures, about MASK_BYTES of masks.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from bokeh.resources import Resources
from PIL import Image

from alignmask._files import replacing
from alignmask.analysis.differences import verdict
from alignmask.analysis.measure import ModelAnalysis
from alignmask.analysis.page_album import Album
from alignmask.analysis.page_plots import score_iou_plot
from alignmask.analysis.page_tables import AP_NAMES, cell, classes, more_tables, size_of, summary
from alignmask.evaluation.alignment import FRACTIONS, score_span, top_predictions
from alignmask.evaluation.metrics import NUMBERS, headings, limit_note, with_limit
from alignmask.evaluation.results_file import GroundTruth
from alignmask.pictures.drawing import OVERLAP, PREDICTION, TRUTH

if TYPE_CHECKING:
    from alignmask.data import CocoDataset

POINTS = 50_000
"""Predictions of each model: the paper's top 10 % of 5,000 images."""

ASSETS = Path(__file__).parent / "assets"
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
    album = Album(ground_truth, dataset)
    tops = [top_predictions(model.pairs, fraction)[:POINTS] for model in models]
    span = score_span(model.pairs.scores_N[top] for model, top in zip(models, tops, strict=True))
    plots = [
        score_iou_plot(album.columns(model, top), span)
        for model, top in zip(models, tops, strict=True)
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
        cell=cell,
        annotations=ground_truth.source,
        size=size_of(ground_truth),
        verdict=verdict(models),
        more=more_tables(models),
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
        models=[summary(model, sheet) for model, sheet in zip(models, sheets, strict=True)],
        classes=classes(models, ground_truth),
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
