"""Processes that load data."""

from __future__ import annotations

import signal


def leave_signals_to_the_main_process(worker: int) -> None:
    """`worker_init_fn` of a DataLoader. Schedulers send SIGTERM to all processes of a job: workers must go on while the main
    process finishes its step and saves. They end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
