"""The time by which `train.max_minutes` ends a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignmask.training import clock
from alignmask.training.clock import Clock

SECONDS = {0: 12.0, 1: 15.0}
"""Of two processes."""


def test_all_processes_have_the_time_of_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(tensor: torch.Tensor, source: int) -> None:
        tensor.fill_(SECONDS[source])

    times = iter((100.0, 100.0 + SECONDS[1]))
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(times)))
    second: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    counted = Clock(1.0, second)
    with counted.counting():
        pass
    assert counted.elapsed == SECONDS[0]
    assert counted.share == SECONDS[0] / 60


def test_a_process_alone_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((100.0, 103.0, 200.0, 204.5))
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(times)))
    alone: Any = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    counted = Clock(0.5, alone)
    for elapsed in (3.0, 7.5):
        with counted.counting():
            pass
        assert counted.elapsed == elapsed
    assert counted.share == 0.25
    assert Clock(0.0, alone).share == 1
    assert Clock(None, alone).share == 0
