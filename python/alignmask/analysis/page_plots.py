"""The plots of a page, as Bokeh's JSON.

Shapes: N predictions of one model that are plotted, best first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from bokeh.models import UIElement


def score_iou_plot(columns: dict[str, np.ndarray], span: tuple[float, float]) -> dict[str, Any]:
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
            TableColumn(field="category", title="class", width=100),
            TableColumn(field="score", title="score", formatter=number, width=60),
            TableColumn(field="iou", title="IoU", formatter=number, width=60),
            TableColumn(field="gap", title="score − IoU", formatter=number, width=100, default_sort="descending"),
            TableColumn(field="area", title="pixels", formatter=count, width=70),
            TableColumn(field="image", title="image id", formatter=count, width=90),
        ],
    )  # fmt: skip
    layout: UIElement = column(plot, table, sizing_mode="stretch_width")
    return dict(json_item(layout))
