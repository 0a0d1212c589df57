"""The place of a run, and what a call that continues it writes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.training.environment import starts
from alignmask.training.trainer import Trainer, train
from tests.training.runs import config


@pytest.fixture(scope="module")
def finished(shapes: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config(shapes, tmp_path_factory.mktemp("runs"), iterations=2))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_is_no_run_is_left_as_it_is(shapes: DataConfig, tmp_path: Path) -> None:
    settings = config(shapes, tmp_path, iterations=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="run: it exists and is not a run"):
            Trainer(settings, resume)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileExistsError, match="it exists and is not a run"):
        Trainer(settings)


def test_a_run_that_was_killed_as_it_began_is_no_obstacle(
    shapes: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.json.x.part.json"):
        (tmp_path / "run" / name).touch()
    Trainer(config(shapes, tmp_path, iterations=1))
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("name", ["..", "a/../../b", "", "."])
def test_names_that_lead_elsewhere_are_refused(
    shapes: DataConfig, tmp_path: Path, name: str
) -> None:
    settings = replace(config(shapes, tmp_path / "out"), name=name)
    with pytest.raises(ValueError, match="name: expected the name of a folder in"):
        Trainer(settings)


def test_a_run_that_is_begun_anew_says_its_old_ones_name(shapes: DataConfig, run: Path) -> None:
    with pytest.warns(UserWarning, match=r"the run that was .*/run is now run\.20\d+-\d+"):
        Trainer(config(shapes, run.parent, iterations=2), resume=False)
    (old,) = run.parent.glob("run.2*")
    assert checkpoint.latest(old)


def test_a_finished_run_keeps_its_settings(shapes: DataConfig, run: Path) -> None:
    before = (run / "config.json").read_bytes()
    train(config(shapes, run.parent, iterations=1, learning_rate=5.0))
    assert (run / "config.json").read_bytes() == before
    assert len(starts(run)) == 1


def test_changed_settings_are_told_and_noted(
    shapes: DataConfig, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(shapes, run.parent, iterations=3, learning_rate=2e-3, ema=0.5))
    said = " ".join(capsys.readouterr().err.split())
    changes = (
        "train.iterations: 2 -> 3; train.learning_rate: 0.001 -> 0.002; train.ema: None -> 0.5"
    )
    assert f"continues at iteration 2, with other settings: {changes};" in said
    assert starts(run)[1]["changed"] == changes.split("; ")
    assert checkpoint.load_config(run).train.ema == 0.5
