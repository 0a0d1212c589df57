"""Several micro-batches make one step, which is that of one batch with all their images.

For this, their losses are divided by counts of the whole step. Instances are counted from the
targets. An aligned query is live if its random points hit its instance, so the points of all
micro-batches are drawn, and looked up in the masks, before the first forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from alignmask.data import Batch
from alignmask.loss import Criterion
from alignmask.loss.normalisers import Normalisers
from alignmask.model import AlignMask


@dataclass(frozen=True)
class Part:
    """A micro-batch of a step, on the device."""

    batch: Batch
    points_BTK2: Tensor | None = None
    """Where aligned queries are pooled; None: the model draws them."""
    normalisers: Normalisers | None = None
    """None: the criterion counts, after the forward pass."""


def parts_of_step(batches: Sequence[Batch], model: AlignMask, criterion: Criterion) -> list[Part]:
    """The parts of a step of this process; all other processes have as many.

    A single micro-batch needs no points in advance: it is counted after its forward pass.
    """
    if len(batches) == 1:
        return [Part(batches[0])]
    points: list[Tensor | None] = []
    counts: list[Tensor] = []
    for batch in batches:
        drawn: Tensor | None = None
        live: Tensor | int = 0
        if (generator := model.aligned_queries) is not None:
            drawn, live = generator.count_live(batch)
        points.append(drawn)
        counts.append(criterion.count(batch, live))
    normalisers = Normalisers.of_step(counts)
    return [Part(batch, drawn, normalisers) for batch, drawn in zip(batches, points, strict=True)]
