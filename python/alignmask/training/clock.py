"""Training time, by which `train.max_minutes` limits a run and drives its schedule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Clock:
    """Counts the seconds of training steps alone: neither evaluations nor checkpoints, nor the time
    between two runs."""

    def __init__(self, max_minutes: float | None, accelerator: Accelerator) -> None:
        self.limit = None if max_minutes is None else 60 * max_minutes
        self.accelerator = accelerator
        self.elapsed = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """The time within this context counts."""
        before = time.monotonic()
        yield
        self.elapsed = self._common(self.elapsed + time.monotonic() - before)

    @property
    def share(self) -> float:
        """Share of the time limit that has passed; 0 without a limit."""
        if self.limit is None:
            return 0.0
        return self.elapsed / self.limit if self.limit else 1.0

    def _common(self, elapsed: float) -> float:
        """The main process's time for all processes: where it determines the learning rate, it must
        be the same in all."""
        if self.limit is None or self.accelerator.num_processes == 1:
            return elapsed
        common = torch.tensor([elapsed], dtype=torch.float32, device=self.accelerator.device)
        torch.distributed.broadcast(common, 0)
        return float(common)
