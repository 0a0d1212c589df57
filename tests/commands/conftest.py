"""What the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignmask import cli
from tests.commands.terminal import Terminal, train_arguments


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` (three training steps) and `shapes` (its data)."""
    folder = tmp_path_factory.mktemp("cli")
    assert cli.main(train_arguments(folder)) == 0
    return folder


@pytest.fixture(autouse=True)
def _working_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults of options are relative to the working folder: nothing may be left in the
    repository."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def alignmask_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("ALIGNMASK_DEBUG", raising=False)
    return Terminal(capsys)
