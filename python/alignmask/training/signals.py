"""Ctrl-C and SIGTERM: a run finishes its iteration and saves a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM); its checkpoint is written."""


class StopSignals:
    """Within this context, either signal sets `requested`; a second signal raises KeyboardInterrupt
    at once."""

    def __init__(self) -> None:
        self.requested = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        except (
            ValueError
        ):  # not in the main thread, where Python delivers no signals: nothing to handle
            self.before = {}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
