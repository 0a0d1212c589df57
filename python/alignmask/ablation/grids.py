"""The paper's ablations, and others, as grids of variants: functions from a config to a config.

A variant's name is that of its folder. Variants of the same name are the same in every grid, so
that grids which share a folder share their runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alignmask.config import AlignedQueryConfig, Config


@dataclass(frozen=True)
class Variant:
    """One line of a table."""

    name: str
    """The name of its folder."""
    labels: tuple[str, ...]
    """The texts of the first columns of the table."""
    change: Callable[[Config], Config]
    paper: dict[str, float] = field(default_factory=dict)
    """The paper's figures: AP in percent, PCC as a number."""


@dataclass(frozen=True)
class Grid:
    title: str
    columns: tuple[str, ...]
    """Headings of the variants' labels."""
    numbers: tuple[str, ...]
    """The figures that the table shows."""
    variants: tuple[Variant, ...]
    layout: Literal["rows", "matrix"] = "rows"
    """matrix: a variant's first label is its row, the second its column; one figure is shown."""


def adapt(
    *,
    model: dict[str, Any] | None = None,
    aligned: dict[str, Any] | Literal["off"] | None = None,
    **loss: Any,
) -> Callable[[Config], Config]:
    """The paper's full method with these fields changed; aligned="off": without Aligned Query
    Learning."""

    def change(config: Config) -> Config:
        queries = config.model.aligned_queries or AlignedQueryConfig()
        queries = replace(
            queries, mask_noise=None, share_self_attention=True, share_masked_attention=True
        )
        kept = None if aligned == "off" else replace(queries, **(aligned or {}))
        settings = {"classification": "quality_focal", "aligned_queries": kept, **(model or {})}
        return replace(
            config,
            model=replace(config.model, **settings),
            loss=replace(config.loss, **{"weigh_negatives": True, **loss}),
        )

    return change


AP3, APS = ("AP", "AP50", "AP75"), ("AP", "AP50", "AP75", "APs", "APm", "APl")
ALIGNMENT = ("PCC top 2 %", "PCC top 10 %")
SOFTMAX = {"classification": "softmax"}

FULL = Variant("full", (), adapt())
NO_AQL = Variant("no_aql", (), adapt(aligned="off"))


def _attention(name: str, own: dict[str, bool], marks: tuple[str, str], *paper: float) -> Variant:
    return Variant(name, marks, adapt(aligned=own), dict(zip(AP3, paper, strict=True)))


OWN_SELF, OWN_MASKED = {"share_self_attention": False}, {"share_masked_attention": False}
TABLE_3 = Grid(
    "Table 3: parameters of the decoder that aligned and object queries share",
    ("self-attention", "masked attention"),
    AP3,
    (
        replace(
            NO_AQL, labels=("no aligned query", ""), paper={"AP": 39.7, "AP50": 58.7, "AP75": 43.3}
        ),
        _attention("own_attention", {**OWN_SELF, **OWN_MASKED}, ("", ""), 40.6, 59.7, 44.5),
        _attention("own_masked_attention", OWN_MASKED, ("✓", ""), 40.8, 60.2, 44.7),
        _attention("own_self_attention", OWN_SELF, ("", "✓"), 40.8, 60.1, 44.6),
        replace(FULL, labels=("✓", "✓"), paper={"AP": 41.4, "AP50": 61.0, "AP75": 45.2}),
    ),
)


def _counts(sets: int, count: int, paper: float) -> Variant:
    change = adapt(aligned={"point_sets": sets, "count": count})
    return Variant(f"t{sets}_n{count}", (f"T = {sets}", f"N_AQ = {count}"), change, {"AP": paper})


TABLE_4 = Grid(
    "Table 4: aligned queries N_AQ and point sets T",
    ("", ""),
    ("AP",),
    (
        replace(NO_AQL, labels=("No AQL", "No AQ"), paper={"AP": 39.7}),
        _counts(1, 50, 40.8),
        _counts(1, 100, 41.0),
        _counts(5, 50, 41.4),
        _counts(5, 100, 41.4),
    ),
    layout="matrix",
)

NO_WEIGHT = "quality focal, w_neg = 1"
COMPONENTS = Grid(
    "Components: label assignment, with and without Aligned Query Learning",
    ("label assignment", "AQL"),
    (*APS, *ALIGNMENT),
    (
        Variant("softmax_no_aql", ("cross-entropy", ""), adapt(aligned="off", model=SOFTMAX)),
        Variant(
            "focal_no_aql", ("focal", ""), adapt(aligned="off", model={"classification": "focal"})
        ),
        Variant("qfl_no_aql", (NO_WEIGHT, ""), adapt(aligned="off", weigh_negatives=False)),
        replace(NO_AQL, labels=("aligned", ""), paper={"AP": 39.7, "AP50": 58.7, "AP75": 43.3}),
        Variant("softmax", ("cross-entropy", "✓"), adapt(model=SOFTMAX)),
        Variant("focal", ("focal", "✓"), adapt(model={"classification": "focal"})),
        Variant("qfl", (NO_WEIGHT, "✓"), adapt(weigh_negatives=False)),
        replace(FULL, labels=("aligned", "✓"), paper={"AP": 41.4, "AP50": 61.0, "AP75": 45.2}),
    ),
)

_TABLES_1_AND_2 = (*APS, *ALIGNMENT)
_MASK2FORMER = dict(
    zip(_TABLES_1_AND_2, (43.7, 66.0, 46.9, 23.4, 47.2, 64.8, 0.221, 0.609), strict=True)
)
_ALIGNMASK = dict(
    zip(_TABLES_1_AND_2, (45.4, 66.3, 50.1, 25.8, 48.3, 65.7, 0.291, 0.610), strict=True)
)
COMPARISON = Grid(
    "Mask2Former, with aligned label assignment, with both (the paper: Tables 1 and 2, ResNet-50, "
    "50 epochs)",
    ("method",),
    (*APS, *ALIGNMENT, *(f"class: {number}" for number in ALIGNMENT)),
    (
        Variant(
            "softmax_no_aql", ("Mask2Former",), adapt(aligned="off", model=SOFTMAX),
            _MASK2FORMER,
        ),
        replace(NO_AQL, labels=("+ Aligned Label Assignment",)),
        replace(FULL, labels=("+ Aligned Query Learning = AlignMask",), paper=_ALIGNMASK),
    ),
)  # fmt: skip


def _one(name: str, label: str, **changes: Any) -> Variant:
    return Variant(name, (label,), adapt(**changes))


def _class_weight(factor: float) -> Callable[[Config], Config]:
    return lambda config: adapt(class_weight=factor * config.loss.class_weight)(config)


BEYOND = Grid(
    "Beyond the paper: the full method with one switch each",
    ("switch",),
    (*APS, *ALIGNMENT),
    (
        replace(FULL, labels=("none",)),
        _one("iou_cost", "loss.iou_cost = 2", iou_cost=2.0),
        _one("mask_noise", "aligned_queries.mask_noise = 0.2", aligned={"mask_noise": 0.2}),
        _one("score_targets", "loss.target_score_share = 0.25", target_score_share=0.25),
    ),
)

CHOICES = Grid(
    "What the paper leaves open: the full method with one choice made differently",
    ("choice",),
    (*APS, *ALIGNMENT),
    (
        replace(FULL, labels=("none",)),
        _one("points_denominator", "GAP divides by K", aligned={"normalize": "points"}),
        _one("detached_embedding", "no gradient from AQL into the pixel embedding", aligned={"detach_pixel_embedding": True}),
        _one("learned_position", "aligned queries have a learned position", aligned={"learned_position": True}),
        _one("sees_set", "aligned queries see only their own point set", aligned={"visible": "set"}),
        _one("sees_all", "aligned queries see all point sets", aligned={"visible": "all"}),
        _one("focal_cost", "matching with the focal cost", class_cost="focal"),
        _one("prediction_iou", "IoU at the prediction's resolution", iou_resolution="prediction"),
        Variant("class_weight_half", ("class weight halved",), _class_weight(0.5)),
        Variant("class_weight_double", ("class weight doubled",), _class_weight(2.0)),
    ),
)  # fmt: skip

GRIDS = {
    "table3": TABLE_3, "table4": TABLE_4, "components": COMPONENTS, "comparison": COMPARISON, "beyond": BEYOND,
    "choices": CHOICES,
}  # fmt: skip
