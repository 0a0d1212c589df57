"""The wheel of each Python under several versions of torch: one binary serves all. `make matrix`.

    make wheel PYTHONS="3.10 3.11"
    make matrix PYTHONS="3.10 3.11" TORCH="2.4.1 2.9.1"
    make matrix FLOORS=1          # every dependency of pyproject.toml in its oldest version

For every pair, an environment gets that torch, the wheel from dist/ with its extra [train], and
what the tests import. There run the op suite, torch.compile and torch.export of each op among it,
the export of a whole model, and small trainings with their evaluations. An environment has 5 GB: it
is removed when its tests have passed, unless --keep is given.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.installed.environments import BUILD, ROOT, TESTING, THIS, environment, suite

TORCH = ("2.4.1", "2.6.0", "2.9.1", "2.11.0", "2.14.1")
"""The oldest that pyproject.toml allows, the first for Python 3.13, and newer ones."""
SUITES = {
    "ops": ["tests/ops"],
    "export": ["tests/exporting/test_export.py"],
    "training": ["tests/training/test_trainer.py"],
}
QUICK = {
    "ops": ["tests/ops/test_operators.py"],
    "export": ["tests/exporting/test_export.py::test_what_the_file_says_of_itself[torch]"],
    "training": [
        f"tests/training/test_trainer.py::{name}"
        for name in (
            "test_a_run_leaves_everything_it_should",
            "test_a_resumed_run_is_bit_identical",
        )
    ],
}
"""Minutes instead of a quarter of an hour: each op through torch.compile and torch.export, the
export of one model, two trainings with their evaluations."""


def torchvision(torch: str) -> str:
    """The torchvision of a torch: 0.19.1 for 2.4.1. pip would find it by trying all others."""
    major, minor, patch = map(int, torch.split("."))
    if major != 2:
        raise ValueError(f"torch {torch}: which torchvision belongs to it is known for 2.x alone")
    return f"0.{minor + 15}.{patch}"


def requirements(extras: Sequence[str]) -> Iterator[str]:
    """What pyproject.toml asks for, extras included."""
    import tomllib  # Python 3.11

    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from project["dependencies"]
    for extra in extras:
        yield from project["optional-dependencies"][extra]


def floor(requirement: str) -> str:
    """`name==1.2` for `name>=1.2`. Every requirement must have a floor."""
    matched = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
    if matched is None:
        raise ValueError(f"{requirement!r} has no floor: expected NAME>=VERSION")
    return f"{matched[1]}=={matched[2]}"


def wheel_for(version: str) -> Path:
    """The newest wheel of dist/ for a Python, one without CUDA kernels: that is what `make wheel`
    makes."""
    name = f"alignmask-*-cp{version.replace('.', '')}-*.whl"
    found = [path for path in (ROOT / "dist").glob(name) if "cuda-cp" not in path.name]
    if not found:
        raise FileNotFoundError(f"dist/{name}: none; run make wheel PYTHONS={version}")
    return max(found, key=lambda path: path.stat().st_mtime)


def check(name: str, version: str, packages: Sequence[str], given: argparse.Namespace) -> bool:
    """Whether the suites pass with these packages; prints a line."""
    began = time.monotonic()
    wheel = wheel_for(version)
    folder = BUILD / f"matrix-{version}-{name.replace(' ', '-')}"
    extras = ",".join(("train", *given.extras))
    try:
        python = environment(
            folder,
            version,
            [*packages, f"alignmask[{extras}] @ {wheel.as_uri()}", *TESTING],
            given.pip,
        )
    except (RuntimeError, FileNotFoundError) as error:
        print(f"Python {version}, {name}: cannot be installed: {error}", flush=True)
        return False
    suites = QUICK if given.quick else SUITES
    results = {title: suite(python, tests, folder, title) for title, tests in suites.items()}
    passed = all(right for right, _ in results.values())
    said = "; ".join(f"{title} {counts}" for title, (_, counts) in results.items())
    print(f"Python {version}, {name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    if passed and not given.keep:
        shutil.rmtree(folder)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=[THIS])
    parser.add_argument("--torch", nargs="+", default=TORCH)
    parser.add_argument("--floors", action="store_true", help="every dependency at its oldest")
    parser.add_argument("--extras", nargs="*", default=[], help="beside train")
    parser.add_argument("--quick", action="store_true", help="a part of each suite")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--pip", nargs="*", default=[], help="arguments for pip install")
    given = parser.parse_args()
    passed = True
    for version in given.pythons:
        if given.floors:
            oldest = [floor(each) for each in requirements(["train", *given.extras])]
            # [train] needs a newer torch than the ops: that of its torchvision.
            oldest = ["torch==2.6.0" if each.startswith("torch==") else each for each in oldest]
            passed &= check("floors", version, oldest, given)
            continue
        for torch in given.torch:
            pair = [f"torch=={torch}", f"torchvision=={torchvision(torch)}"]
            passed &= check(f"torch {torch}", version, pair, given)
    return not passed


if __name__ == "__main__":
    sys.exit(main())
