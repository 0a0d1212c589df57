"""The scripts behind `make wheel` and `make matrix`, without building or installing anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.installed import environments, matrix
from tests.installed.environments import counts, interpreter
from tests.installed.matrix import floor, requirements, torchvision, wheel_for

needs_tomllib = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="reading pyproject.toml needs Python 3.11"
)


@needs_tomllib
def test_every_dependency_of_the_toolkit_has_a_floor() -> None:
    oldest = dict(floor(each).split("==") for each in requirements(["train", "analyze"]))
    assert oldest["torch"] == matrix.TORCH[0]
    assert {"numpy", "timm", "bokeh"} <= oldest.keys()


@pytest.mark.parametrize("requirement", ["numpy", "numpy>1.2", "numpy>=1.2,<3"])
def test_a_requirement_without_a_plain_floor_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="has no floor"):
        floor(requirement)


def test_torchvision_of_a_torch() -> None:
    """As PyPI has them."""
    pairs = {"2.4.1": "0.19.1", "2.6.0": "0.21.0", "2.9.1": "0.24.1", "2.14.1": "0.29.1"}
    assert {torch: torchvision(torch) for torch in pairs} == pairs
    with pytest.raises(ValueError, match="known for 2"):
        torchvision("3.0.0")


@pytest.mark.parametrize("suites", [matrix.SUITES, matrix.QUICK])
def test_the_tests_that_the_matrix_runs_exist(suites: dict[str, list[str]]) -> None:
    for test in (test for tests in suites.values() for test in tests):
        path, _, name = test.partition("::")
        assert (REPOSITORY / path).exists()
        if name:
            assert f"def {name.partition('[')[0]}(" in (REPOSITORY / path).read_text()


def test_counts_of_pytest() -> None:
    assert (
        counts("...\n== 2 failed, 40 passed, 1 skipped in 3.1s ==\n")
        == "2 failed, 40 passed, 1 skipped"
    )
    assert counts("ERROR: file not found\n") == "ERROR: file not found"
    assert counts("") == "no output"


def test_an_interpreter_is_of_the_version_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter(environments.THIS) == Path(sys.executable)
    liar = tmp_path / "versions/3.99.0/bin/python"
    liar.parent.mkdir(parents=True)
    liar.symlink_to(sys.executable)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is none on the PATH"):
        interpreter("3.99")


def test_a_wheel_with_cuda_kernels_is_not_taken_for_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/alignmask-0.1.0-13cuda-cp311-cp311-manylinux_2_34_x86_64.whl").touch()
    with pytest.raises(FileNotFoundError, match="run make wheel"):
        wheel_for("3.11")
    plain = tmp_path / "dist/alignmask-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
    plain.touch()
    assert wheel_for("3.11") == plain
