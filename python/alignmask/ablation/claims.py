"""Divides work among processes on one or several machines that share a folder.

A claim is a file `<item>.<n>`, made with O_EXCL, so that of all contenders exactly one gets number
n. The highest number holds the item; numbers only grow and no file is ever removed or replaced by
another process, so there is no moment in which two could take over the same claim. The holder
touches its file now and then. A claim is free, so that number n + 1 may be made, when it was
released, when its process on this machine is gone, or when another machine has not touched it for
`stale_after` seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignmask._files import write_json

HEARTBEAT, STALE_AFTER = 20.0, 300.0
"""Seconds. Network file systems may show a touch up to a minute late."""


@dataclass(frozen=True)
class Holder:
    """The process that holds an item."""

    host: str
    pid: int
    since: float
    """Unix time by the holder's clock."""

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"


class Claims:
    """The claims in one folder. `stale_after` must be the same for all processes, and several times
    `heartbeat`."""

    def __init__(
        self, folder: Path, heartbeat: float = HEARTBEAT, stale_after: float = STALE_AFTER
    ) -> None:
        if stale_after < 3 * heartbeat:
            raise ValueError(
                f"claims: stale_after {stale_after} s is less than 3 heartbeats of {heartbeat} s"
            )
        self.folder, self.heartbeat, self.stale_after = folder, heartbeat, stale_after

    def take(self, item: str, on_lost: Callable[[], None] | None = None) -> Claim | None:
        """The claim to `item`, to be used as a context manager; None if another process holds it.

        on_lost is called from another thread if another process has taken the claim over, because
        this one was suspended, or cut off from the folder, for longer than `stale_after`. By
        default it sends SIGTERM to this process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._lock(item)
        if lock is None:
            return None
        number = self._newest(item)
        if number and self._holder(item, number, lock) is not None:
            _unlock(lock)
            return None
        try:
            with open(self._path(item, number + 1), "x") as file:
                json.dump(
                    {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}, file
                )
        except FileExistsError:  # another process was quicker
            _unlock(lock)
            return None
        return Claim(self, item, number + 1, lock, on_lost or _terminate)

    def holder(self, item: str) -> Holder | None:
        """The holder of the item, None if it is free."""
        number = self._newest(item)
        if not number:
            return None
        lock = self._lock(item)
        try:
            return self._holder(item, number, lock)
        finally:
            if lock is not None:
                _unlock(lock)

    def _holder(self, item: str, number: int, lock: int | None) -> Holder | None:
        """lock: this machine's lock on the item, None if another process of this machine has it."""
        path = self._path(item, number)
        try:
            values, touched = json.loads(path.read_text()), path.stat().st_mtime
        except json.JSONDecodeError:  # it is just being written; or its process died doing so
            values, touched = {}, path.stat().st_mtime
        if values.get("released"):
            return None
        # Then a live holder would have the lock, be it suspended.
        here = values.get("machine") == _machine()
        free = lock is not None if here else self._now() - touched > self.stale_after
        if free:
            return None
        return Holder(values.get("host", "?"), values.get("pid", 0), touched)

    def _newest(self, item: str) -> int:
        numbers = (path.name.removeprefix(f"{item}.") for path in self.folder.glob(f"{item}.*"))
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _path(self, item: str, number: int) -> Path:
        return self.folder / f"{item}.{number}"

    def _lock(self, item: str) -> int | None:
        """This machine's lock on the item, as a file descriptor; None if another process has it.

        The lock ends with the process, however that ends. Every machine has its own lock file,
        because not every file system shares locks between machines.
        """
        descriptor = os.open(self.folder / f"{item}.{_machine()}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise OSError(
                error.errno,
                f"{self.folder}: the file system does not support locks ({error.strerror})",
            ) from error
        return descriptor

    def _now(self) -> float:
        """The time by the clock that stamps the files, whatever this machine's says. (Where clients
        stamp files themselves, their clocks must agree to within `stale_after`.)"""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime


class Claim:
    """A claim that this process holds until the end of its `with` block."""

    def __init__(
        self, claims: Claims, item: str, number: int, lock: int, on_lost: Callable[[], None]
    ) -> None:
        self.path = claims._path(item, number)
        self.lost = False
        self._claims, self._item, self._number, self._lock, self._on_lost = (
            claims,
            item,
            number,
            lock,
            on_lost,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {item}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost:
            write_json(self.path, {"released": True})
        _unlock(self._lock)

    def _beat(self) -> None:
        while not self._ended.wait(self._claims.heartbeat):
            # A file system that is away for a moment: the next beat tries again.
            with contextlib.suppress(OSError):
                os.utime(self.path)
                if self._claims._newest(self._item) > self._number:
                    self.lost = True
                    self._on_lost()
                    return


def _unlock(descriptor: int) -> None:
    # Closing alone would leave it to forked children that are still there.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _machine() -> str:
    """Names the running kernel: processes that see the same name see each other's locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return (
        boot.read_text().strip() if boot.exists() else f"{socket.gethostname()}-{uuid.getnode():x}"
    )
