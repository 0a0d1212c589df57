"""How sure it is that one model is better than another: paired intervals, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignmask.analysis.measure import ModelAnalysis
from alignmask.config import RESAMPLES
from alignmask.evaluation.bootstrap import Estimate, paired_intervals
from alignmask.evaluation.duplicates import SHOWN

HIGHER_IS_BETTER = {"AP": True, "second masks": False, "PCC": True, "LaECE0": False}
"""The measures that are compared."""
PERCENT = ("AP", "second masks")


def with_differences(
    models: Sequence[ModelAnalysis], images: int, resamples: int = RESAMPLES
) -> list[ModelAnalysis]:
    """The models, each but the first with its differences to the first, of the same resamples."""
    first, *others = models
    return [
        first,
        *(
            replace(
                other,
                difference=paired_intervals(
                    first.compared, other.compared, images, resamples=resamples
                ),
            )
            for other in others
        ),
    ]


def verdict(models: Sequence[ModelAnalysis]) -> str:
    """One sentence of what was found."""
    first, *others = models
    if not others:
        return _alone(first)
    said = [_compared(other) for other in others]
    return f"Compared with {first.name}, {'; '.join(said)}."


def _alone(model: ModelAnalysis) -> str:
    top, shown = model.alignment.top[-1], model.duplicates[SHOWN].share
    AP = "not defined" if model.metrics.AP < 0 else f"{100 * model.metrics.AP:.1f}"
    pcc = top.pcc_same_class
    follows = (
        "how well its score follows the mask IoU cannot be said"
        if pcc is None
        else f"its score follows the mask IoU with a correlation of {pcc:.2f}"
    )
    second = "nothing" if shown is None else f"{100 * shown:.0f} % second masks"
    return f"{model.name} has an AP of {AP}, {follows}, and what it shows has {second} in it."


def _compared(model: ModelAnalysis) -> str:
    better, worse, open_ = [], [], []
    for name, difference in model.difference.items():
        if not difference.excludes_zero:
            open_.append(name)
        elif (difference.value > 0) == HIGHER_IS_BETTER[name]:  # type: ignore[operator]
            better.append(f"{name} ({_words(name, difference)})")
        else:
            worse.append(f"{name} ({_words(name, difference)})")
    parts = [
        f"is {what} in {_list(names)}"
        for what, names in (("better", better), ("worse", worse))
        if names
    ]
    if open_:
        parts.append(f"does not differ for certain in {_list(open_)}")
    return f"{model.name} {', '.join(parts) or 'was not compared'}"


def _words(name: str, difference: Estimate) -> str:
    return difference.signed_percent() if name in PERCENT else difference.signed()


def _list(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
