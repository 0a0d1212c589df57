"""Which images each process sees in which iteration, and the seeds of an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader

from alignmask.config import TrainConfig
from alignmask.data import (
    Batch,
    CocoDataset,
    TrainingStream,
    collate,
    leave_signals_to_the_main_process,
)


@dataclass(frozen=True)
class MicroBatches:
    """The positions in the training stream that one process takes together: a batch sampler.

    All processes take their shares of a micro-batch one beside the other. Nothing is listed in
    advance, so a run may be of any length.
    """

    first: int
    """Number of the first micro-batch; those before are done."""
    stop: int
    size: int
    """Images that one process takes together."""
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return max(0, self.stop - self.first)

    def __iter__(self) -> Iterator[range]:
        for number in range(self.first, self.stop):
            start = (number * self.processes + self.process) * self.size
            yield range(start, start + self.size)


def training_batches(
    data: CocoDataset, t: TrainConfig, micro_batches: MicroBatches, workers: int, pinned: bool
) -> Iterator[Batch]:
    """The micro-batches of a process, loaded."""
    return iter(
        DataLoader(
            TrainingStream(data, t.iterations * t.images_per_step, t.seed),
            batch_sampler=micro_batches,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=leave_signals_to_the_main_process,
            pin_memory=pinned,
            persistent_workers=workers > 0,
        )
    )


def seed_of(*numbers: int) -> int:
    """One seed from several numbers. Seeds of neighbouring numbers are unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
