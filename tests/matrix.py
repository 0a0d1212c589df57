"""The compiled module that is installed here, under other versions of torch: one binary serves all.

    make matrix TORCH="2.4.1 2.9.0"

For every version an environment of its own is made in build/matrix, of this interpreter, and the
op suite runs there, torch.compile and torch.export included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import alignmask
from alignmask import _core

ROOT = Path(__file__).parents[1]
NEEDED = ("numpy", "scipy", "pytest", "hypothesis", "numba")
VERSIONS = ("2.4.1", "2.6.0", "2.9.1", "2.14.1")
"""The oldest that pyproject.toml allows, one with Python 3.13, one that V100 users have, the newest
that installs."""


def staged(folder: Path) -> Path:
    """A copy of the package with its compiled module, without anything else that is installed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        Path(alignmask.__file__).parent,
        folder / "alignmask",
        ignore=shutil.ignore_patterns("__pycache__", "released", "*.so"),
    )
    shutil.copy(_core.__file__, folder / "alignmask")
    kernels = Path(_core.__file__).parent / "kernels"
    if kernels.is_dir():
        shutil.copytree(kernels, folder / "alignmask/kernels", dirs_exist_ok=True)
    return folder


def environment(version: str, pip: list[str]) -> Path:
    """The interpreter of an environment with that torch."""
    folder = ROOT / "build/matrix" / version
    python = folder / "bin/python"
    if not (folder / ".installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *pip, f"torch=={version}", *NEEDED], check=True
        )
        (folder / ".installed").touch()
    return python


def op_suite(python: Path, package: Path, tests: list[str]) -> str:
    """pytest's last line."""
    paths = os.pathsep.join(map(str, (package, ROOT)))
    ini = package / "pytest.ini"  # the project's plugins and warnings are not those of an old torch
    ini.write_text("[pytest]\nmarkers =\n  slow\n  covers\naddopts = --import-mode=importlib\n")
    found = subprocess.run(
        [python, "-m", "pytest", "-q", "-c", ini, f"--rootdir={ROOT}", "-p", "no:cacheprovider", *tests],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True,
    )  # fmt: skip
    (package / "output.txt").write_text(found.stdout + found.stderr)
    return (found.stdout.strip().splitlines() or [found.stderr.strip()])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--tests", nargs="+", default=["tests/ops"])
    parser.add_argument("--pip", nargs="*", default=[], help="arguments for pip install")
    given = parser.parse_args()
    failed = False
    for version in given.versions:
        try:
            python = environment(version, given.pip)
        except subprocess.CalledProcessError:
            print(f"torch {version}: cannot be installed for this Python", flush=True)
            failed = True
            continue
        last = op_suite(python, staged(ROOT / "build/matrix" / f"package-{version}"), given.tests)
        failed |= "failed" in last or "error" in last or "passed" not in last
        print(f"torch {version}, Python {sys.version.split()[0]}: {last}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
