"""CONTRIBUTING.md's example of a new op, written file by file into a copy of the repository, builds
and passes its tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import docs_pages
from tests.conftest import REPOSITORY

OP = "mask_area"
FILES = {block.file: block.code for block in docs_pages.blocks("CONTRIBUTING.md") if block.file}
EDITS = (  # what the page says in words
    ("cmake/AlignMaskOps.cmake", r"set\(ALIGNMASK_OPS\s+", rf"\g<0>{OP} "),
    ("python/alignmask/ops/_library.py", r"^OPS = \(", rf'\g<0>"{OP}", '),
    (
        "python/alignmask/ops/__init__.py",
        r"\n\n__all__",
        f"\nfrom alignmask.ops.{OP} import {OP}\\g<0>",
    ),
    ("python/alignmask/ops/__init__.py", r"__all__ = \[", rf'\g<0>"{OP}", '),
    (
        "python/alignmask/ops/reference/__init__.py",
        r"\n\n__all__",
        f"\nfrom alignmask.ops.reference.{OP} import {OP}\\g<0>",
    ),
    ("python/alignmask/ops/reference/__init__.py", r"__all__ = \[", rf'\g<0>"{OP}", '),
)
"""File, what is replaced, replacement."""
WITHOUT_THE_INSTALLED_PACKAGE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the new op."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("bindings", "cmake", "core", "python", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    for file, code in FILES.items():
        path = folder / file
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    for file, pattern, replacement in EDITS:
        path = folder / file
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
        assert count == 1, f"{file} has no {pattern}"
        path.write_text(text)
    return folder


def test_the_example_has_the_files_of_every_op(copy: Path) -> None:
    """As `quality_focal_loss`, whose CUDA kernel has a file of its own."""
    assert len(FILES) == 12
    for file in FILES:
        if not file.startswith("tests/"):
            assert (REPOSITORY / file.replace(OP, "quality_focal_loss")).is_file(), file


@pytest.mark.slow
def test_the_example_builds_and_passes_its_tests(copy: Path) -> None:
    def run(*command: str, **environment: str) -> None:
        done = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout.decode()[-5000:]

    run(
        "cmake",
        "-S",
        ".",
        "-B",
        "build",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DALIGNMASK_TESTS=OFF",
    )
    run("cmake", "--build", "build", "--parallel", "2", "--target", "_core", "_simt")
    (built,) = (copy / "build").glob("_core.*.so")
    shutil.copy(built, copy / "python" / "alignmask")
    (copy / "sitecustomize.py").write_text(WITHOUT_THE_INSTALLED_PACKAGE)
    path = os.pathsep.join(map(str, (copy, copy / "python")))
    run(sys.executable, "-m", "pytest", "-q", f"tests/ops/test_{OP}.py", PYTHONPATH=path)
