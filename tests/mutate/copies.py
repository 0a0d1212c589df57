"""Copies of the working tree, in which `make mutate` plants its faults: whatever happens, the tree
itself stays as it is."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.mutate.mutants import Mutant

CORE = Path(importlib.import_module("alignmask._core").__file__ or "")
# The installed package finds its files by a finder of its own, which comes before every path.
SITE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith('ScikitBuild')]\n"


class Copy:
    """A copy of the working tree, in which faults are planted and tests run."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        # The command that builds a core of the copy's own, if it has one.
        self.build: list[str] = []
        self.left_out: set[str] = set()
        self.running: subprocess.Popen[bytes] | None = None
        self.closed = False
        self.stamps = itertools.count(int(time.time()))
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(
            listed, cwd=repository, check=True, capture_output=True, text=True
        ).stdout.split("\0")
        names += [
            path.relative_to(repository).as_posix()
            for path in (repository / "tests/simt").glob("_simt.*.so")
        ]
        for name in names:
            if (repository / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, folder / name)
        for name in ("site", "tmp"):
            (folder / name).mkdir()
        (folder / "site/sitecustomize.py").write_text(SITE)
        for source in (CORE, CORE.parent / "kernels"):
            (folder / "python/alignmask" / source.name).symlink_to(source)
        self.environment = {
            "ALIGNMASK_DATA": str(repository.parent / "shared/data"),
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{folder / 'site'}:{folder / 'python'}",
            "TMPDIR": str(folder / "tmp"),
        }

    def configure(self) -> None:
        """Give the copy a build of the core of its own, quick to compile."""
        tools, build = Path(sys.executable).parent, self.folder / "build"
        options = {
            "Python_EXECUTABLE": sys.executable, "CMAKE_MAKE_PROGRAM": tools / "ninja", "CMAKE_BUILD_TYPE": "Quick",
            "CMAKE_CXX_FLAGS": "-O1", "ALIGNMASK_CUDA": "OFF", "ALIGNMASK_TESTS": "OFF",
        }  # fmt: skip
        flags = [f"-D{name}={value}" for name, value in options.items()]
        self.build = [str(tools / "cmake"), "--build", str(build), "--target", "_core", "_simt"]
        for command in (
            [str(tools / "cmake"), "-S", ".", "-B", str(build), "-G", "Ninja", *flags],
            self.build,
        ):
            assert self.run(command, 900) == 0, (self.folder / "output.txt").read_text()
        link = self.folder / "python/alignmask" / CORE.name
        link.unlink()
        link.symlink_to(build / CORE.name)

    def run(self, command: list[str], timeout: float) -> int | None:
        """Exit status, None at the timeout. Whatever the command has started ends with it."""
        with (self.folder / "output.txt").open("wb") as output:
            options = {"stdout": output, "stderr": output, "start_new_session": True}
            self.running = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, **options
            )
            try:
                return self.running.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                self.end()
                if self.closed:
                    raise KeyboardInterrupt

    def end(self) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()

    def close(self) -> None:
        self.closed = True
        self.end()

    def test(self, files: list[str], timeout: float, *options: str) -> int | None:
        deselected = [option for test in sorted(self.left_out) for option in ("--deselect", test)]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *options,
            *deselected,
            *files,
        ]
        return self.run(command, timeout)

    def baseline(self, files: list[str]) -> dict[str, float]:
        """Seconds of every test file without a fault; tests that fail without one are left out from
        here on."""
        assert self.test(files, 3600, "--junitxml=times.xml") in (0, 1), (
            self.folder / "output.txt"
        ).read_text()
        failed = re.findall(
            r"(?m)^(?:FAILED|ERROR) (.+?)(?: - .*)?$", (self.folder / "output.txt").read_text()
        )
        self.left_out |= set(failed)
        seconds = dict.fromkeys(files, 0.0)
        for case in ET.parse(self.folder / "times.xml").iter("testcase"):
            name = case.get("classname", "").replace(".", "/") + "/"
            for file in files:
                if name.startswith(file.removesuffix(".py") + "/"):
                    seconds[file] += float(case.get("time", 0))
        return seconds

    def judge(
        self, mutant: Mutant, groups: tuple[list[str], list[str]], seconds: dict[str, float]
    ) -> str:
        file = self.folder / mutant.path
        source = file.read_bytes()
        try:
            file.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
            if not self.build:  # bytecode is known by its source's size and second
                os.utime(file, times=(stamp := next(self.stamps), stamp))
            elif self.run(self.build, 600) != 0:
                return "does not build"
            for files in (sorted(group, key=seconds.__getitem__) for group in groups if group):
                status = self.test(files, 60 + 3 * sum(seconds[file] for file in files), "-x")
                if status not in (0, 5):  # 5: all that is there is left out
                    return "timed out" if status is None else "noticed"
            return "survived"
        finally:
            file.write_bytes(source)
            if not self.build:
                os.utime(file, times=(stamp := next(self.stamps), stamp))
