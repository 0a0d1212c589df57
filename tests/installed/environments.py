"""Environments in which an installed wheel is tested, and tests that run there.

Nothing of the checkout is imported but the tests: its package lies in python/, which is on no path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/installed"
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
TESTING = ("pytest", "hypothesis", "numba", "scipy", "psutil", "pycocotools")
"""What the tests need beside the package."""


def interpreter(version: str) -> Path:
    """The Python of a version such as 3.12: this one, one on the PATH, or one that pyenv has."""
    if version == THIS:
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    on_path = shutil.which(f"python{version}")
    for python in (*([Path(on_path)] if on_path else []), *reversed(found)):
        says = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(says, capture_output=True, text=True).stdout.strip() == version:
            return python
    raise FileNotFoundError(f"Python {version}: there is none on the PATH, nor in {pyenv}")


def environment(
    folder: Path, version: str, packages: Sequence[str | Path], pip: Sequence[str]
) -> Path:
    """The interpreter of a new environment with these packages, or of the one that has them."""
    python = folder / "bin/python"
    asked = "\n".join(map(str, packages))
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != asked:
        shutil.rmtree(folder, ignore_errors=True)
        if version == THIS:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([interpreter(version), "-m", "venv", folder], check=True)
        install(python, packages, pip)
        stamp.write_text(asked)
    return python


def install(python: Path, packages: Sequence[str | Path], pip: Sequence[str]) -> None:
    """Raises RuntimeError with pip's own reason."""
    done = subprocess.run(
        [python, "-m", "pip", "install", "--no-cache-dir", "--quiet", *pip, *packages],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError((reasons or done.stderr.splitlines() or ["pip failed"])[-1])


def run(python: Path, *command: str | Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where the tests of the checkout can be imported; what it says is also in `out`."""
    found = subprocess.run(
        [python, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out.write_text(found.stdout)
    return found


def where(python: Path, out: Path) -> Path:
    """The folder of the package that the tests will import."""
    found = run(python, "-c", "import alignmask; print(alignmask.__path__[0])", out=out)
    if found.returncode:
        raise RuntimeError(found.stdout)
    return Path(found.stdout.splitlines()[-1])


def suite(python: Path, tests: Sequence[str], folder: Path, name: str) -> tuple[bool, str]:
    """Whether these tests pass in an environment, and their counts in words."""
    installed = where(python, folder / "where.txt")
    if folder not in installed.parents:
        raise RuntimeError(f"the tests would import {installed}, not what is installed in {folder}")
    ini = folder / "pytest.ini"  # the project's plugins and warnings are not those of an old torch
    ini.write_text("[pytest]\nmarkers =\n  slow\n  covers\naddopts = --import-mode=importlib\n")
    found = run(
        python, "-m", "pytest", "-q", "-rs", "-c", ini, f"--rootdir={ROOT}", "-p", "no:cacheprovider",
        *tests, out=folder / f"{name}.txt",
    )  # fmt: skip
    return found.returncode == 0, counts(found.stdout)


def counts(output: str) -> str:
    """`412 passed, 3 skipped` from what pytest printed, or its last line if it has no counts."""
    last = (output.strip().splitlines() or ["no output"])[-1]
    found = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed|xpassed)", last)
    return ", ".join(found) or last
