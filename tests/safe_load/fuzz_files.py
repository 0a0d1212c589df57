"""Damaged files with tensors without end: is nothing executed, is no memory taken that the file
does not need, and is every refusal the documented error?

    python -m tests.safe_load.fuzz_files --files 20000 --seed 0

tests.safe_load.damage makes the files. They are read in child processes, a few hundred each, which
note every program, import, evaluated code or written file (Python's audit events) and may use 96
MiB more than when they began. Ends with status 1 and the file if a reader does any of this, raises
anything but CheckpointError, does not name the file, needs more than ten seconds, or crashes.
"""

from __future__ import annotations

import argparse
import codecs
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignmask.safe_load import CheckpointError, read_pickled, read_tensors
from tests.safe_load import damage

SECONDS, MIBIBYTES, TOGETHER = 10, 96, 250
FORBIDDEN = (
    "compile", "exec", "import", "os.", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.dlopen", "marshal.",
    "code.", "urllib.", "tempfile.", "webbrowser.", "pty.",
)  # fmt: skip
"""How the names of events begin that no reading may raise."""


class Executed(BaseException):
    """A reading has done what no reading does. Not an Exception, which a reader may well catch."""


watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; it stays for good, and looks while `watching`."""
    if not watching:
        return
    writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes or event.startswith(FORBIDDEN):
        raise Executed(f"{event} {arguments!r:.200}")


def limit_memory(mebibytes: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20,) * 2)


def verdict(path: Path, read: Callable[[Path], Any], refusals: tuple[type[Exception], ...]) -> str:
    """Either "accepted" or "refused", otherwise what is wrong."""
    global watching
    watching = True
    try:
        read(path)
    except refusals as error:
        # A reader that turns any exception into its own must not hide how much memory it asked for.
        chain: list[BaseException] = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(before)
        text = "\n".join(map(str, chain))
        if any(isinstance(one, MemoryError) for one in chain) or "allocate" in text:
            return f"asks for too much memory: {text[:2000]}"
        return "refused" if str(path) in str(error) else f"does not name the file: {error}"
    except BaseException as error:
        watching = False  # a traceback is formatted with the help of the compiler
        return "".join(traceback.format_exception(error))
    finally:
        watching = False
    return "accepted"


def one(number: int, seed: int, folder: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    chance = random.Random(f"{seed} {number}")
    name = chance.choice(sorted(files))
    path = folder / name
    path.write_bytes(damage.damaged(name, files, chance))
    read = read_tensors if name.endswith(".safetensors") or chance.random() < 0.8 else read_pickled
    return path, verdict(path, read, (CheckpointError,))


def in_a_child(work: Callable[[], None], log: Path) -> int:
    """Calls it in a forked process; its wait status."""
    pid = os.fork()
    if pid == 0:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 2)  # of what ends the process
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=file)
                file.flush()
                os._exit(1)
    return os.waitpid(pid, 0)[1]


Case = Callable[[int], tuple[Path, str]]
"""Makes the file of a number and reads it: the file, and the verdict."""


def run(case: Case, files: int, folder: Path, mebibytes: int) -> Counter[str] | None:
    """Verdicts and how many files had them; None after the first that is wrong, which is
    printed."""
    progress, log = folder / "progress", folder / "log"
    progress.touch()

    def several(numbers: range) -> None:
        os.chdir(folder)
        sys.addaudithook(watch)
        limit_memory(mebibytes)
        with progress.open("a") as file:
            for number in numbers:
                file.write(f"{number} ")
                file.flush()
                signal.alarm(SECONDS)
                path, said = case(number)
                signal.alarm(0)
                if said not in ("accepted", "refused"):
                    raise AssertionError(f"file {number}, {path}: {said}")
                file.write(f"{said}\n")
        if (folder / damage.MARK).exists():
            raise AssertionError("a file was executed")

    for first in range(0, files, TOGETHER):
        numbers = range(first, min(first + TOGETHER, files))
        if status := in_a_child(lambda numbers=numbers: several(numbers), log):
            line = progress.read_text().splitlines()[-1]
            print(f"wait status {status} at file {line}\n{log.read_text()[-4000:]}")
            return None
    return Counter(line.split()[1] for line in progress.read_text().splitlines())


def ended(what: str, outcomes: Counter[str] | None, folder: Path, keep: Path | None) -> int:
    """The exit status. Prints the outcomes; of a run that found something, what was wrong is copied
    to `keep`."""
    if outcomes is None:
        if keep is not None:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        return 1
    print(f"{outcomes.total()} {what}, none executed and none with a crash: {dict(outcomes)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="copy the file that is wrong to this folder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder, files = Path(name), damage.valid()
        # What is imported late is imported now.
        for codec in ("cp437", "raw-unicode-escape", "unicode-escape", "ascii", "latin-1"):
            codecs.lookup(codec)
        for valid, content in files.items():
            (folder / valid).write_bytes(content)
            read_tensors(folder / valid) if valid != "state.pt" else read_pickled(folder / valid)
        outcomes = run(
            lambda number: one(number, options.seed, folder, files),
            options.files,
            folder,
            MIBIBYTES,
        )
        return ended("files", outcomes, folder, options.keep)


if __name__ == "__main__":
    sys.exit(main())
