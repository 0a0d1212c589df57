"""Data-loading processes."""

from __future__ import annotations

import signal


def leave_signals_to_the_main_process(worker: int) -> None:
    """The `worker_init_fn` of a DataLoader: ignore SIGINT and SIGTERM.

    Schedulers send SIGTERM to all processes of a job. Workers must continue while the main process
    finishes its step and saves; they end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
