"""One process at a time trains a run.

The lock is POSIX's, on a file in the run's folder: it ends with the process, however that ends,
forked processes that load data do not have it, and NFS shares it between machines.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from pathlib import Path

LOCK = ".lock"
_HELD: dict[tuple[int, int], int] = {}
"""(device, inode) -> descriptor. Closing any descriptor of such a file would end the lock, so they
stay open, and a held file is not opened again."""


class RunInUse(OSError):
    """Another process trains this run."""


def hold(run: Path) -> None:
    """Keep the run for this process until its end.

    Raises RunInUse that names the process which has it. Where the file system knows no locks, a
    warning says so.
    """
    path = run / LOCK
    if path.exists() and _identity(os.stat(path)) in _HELD:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise RunInUse(
                f"run {run} is being trained by {holder or 'another process'}. Two processes must "
                "not write into one folder: wait, stop the other one, or give this run another "
                "--name"
            ) from None
        warnings.warn(
            f"run {run}: this file system knows no locks ({error.strerror}), so nothing keeps a "
            "second process from training the same run",
            stacklevel=2,
        )
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _HELD[_identity(os.fstat(descriptor))] = descriptor


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
