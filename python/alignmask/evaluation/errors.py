"""What kind of error costs how much AP: the split of TIDE (Bolya et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from alignmask.evaluation.matches import Matches
from alignmask.evaluation.metrics import percent
from alignmask.evaluation.results_file import GroundTruth, Results
from alignmask.evaluation.tables import number_table

if TYPE_CHECKING:
    from rich.table import Table

FOUND, BACKGROUND = 0.5, 0.1
"""IoU from which on an object is found, and up to which a prediction is of the background."""
KINDS = {
    "Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate", "Bkg": "background",
    "Miss": "missed",
}  # fmt: skip
"""Our names of the kinds, by the tool's."""


@dataclass(frozen=True)
class ErrorSplit:
    """Each error is of the first kind that fits:

    - localisation: an IoU of 0.1 to 0.5 with an object of the predicted class;
    - classification: an IoU of 0.5 or more with an object of another class;
    - duplicate: an IoU of 0.5 or more with an object that a better-scored prediction has found;
    - background: an IoU of at most 0.1 with every object;
    - both: none of these, so it overlaps an object of another class too little.

    A missed object is one that no prediction of the first two kinds would find if it were right.
    """

    AP50: float
    """-1 without ground truth."""
    lost: dict[str, float]
    """How much AP50 would rise if the errors of a kind were mended and all others stayed; by kind.
    These do not add up to what is missing."""
    counts: dict[str, int]
    """The errors, by kind."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def error_split(ground_truth: GroundTruth, results: Results, matches: Matches) -> ErrorSplit:
    """The errors of predictions by kind.

    Crowd regions, and predictions that only they cover, are left out: COCO's rules count neither
    as right nor wrong.

    Args:
        matches: Of these results, at an IoU of 0.5.
    """
    import hotcoco

    truths = [a for a in ground_truth.annotations if not a["iscrowd"]]
    entries = [results.entries[n] for n in matches.position_N.tolist()]
    nothing: dict[str, Any] = dict.fromkeys(KINDS.values(), 0)
    if not truths:
        counts = {**nothing, "background": len(entries)}
        return ErrorSplit(-1.0, dict.fromkeys(nothing, 0.0), counts)
    if not entries:
        lost = dict.fromkeys(nothing, 0.0) | {"missed": 1.0}
        return ErrorSplit(0.0, lost, {**nothing, "missed": len(truths)})
    data = hotcoco.COCO(replace(ground_truth, annotations=truths).as_coco())
    tool = hotcoco.COCOeval(data, data.load_res(entries), "segm")
    tool.params.max_dets = [1 + int(matches.class_rank_N.max())]  # all that were matched
    tool.evaluate()
    split = tool.tide_errors(pos_thr=FOUND, bg_thr=BACKGROUND)
    return ErrorSplit(
        AP50=float(split["ap_base"]),
        lost={kind: float(split["delta_ap"][theirs]) for theirs, kind in KINDS.items()},
        counts={kind: int(split["counts"][theirs]) for theirs, kind in KINDS.items()},
    )


def error_table(splits: Mapping[str, ErrorSplit], column: str = "score") -> Table:
    """A row for each of several named splits."""
    named = any(splits)
    short = {"classification": "class", "localisation": "mask"}
    table = number_table(
        "AP50 (%) lost to each kind of error, and the number of such errors",
        "AP50",
        *(short.get(kind, kind) for kind in KINDS.values()),
        first=column if named else None,
    )
    for name, split in splits.items():
        first = [name] if named else []
        table.add_row(*first, percent(split.AP50), *(percent(v) for v in split.lost.values()))
        table.add_row(*([""] if named else []), "", *map(str, split.counts.values()))
    return table
