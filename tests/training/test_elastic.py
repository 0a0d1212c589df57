"""torchrun restarts the processes of a run of which one was killed, and the run goes on."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from alignmask import checkpoint
from alignmask.config import TrainConfig
from alignmask.training import processes
from alignmask.training.precision import Precision
from tests.conftest import run_apart
from tests.training import elastic
from tests.training.runs import assert_equal, lines, weights

WHOLE = """
import sys
from pathlib import Path
import torch
from alignmask.training.trainer import train
from tests.training import elastic, forks

torch.set_num_threads(1)
forks.in_processes(2, lambda: train(elastic.settings(Path(sys.argv[1]), "whole")))
"""


@pytest.mark.parametrize("restarts", ["0", "2"])
@pytest.mark.parametrize("shared", ["True", "False"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_store_that_outlives_its_processes_is_warned_of(
    rank: str, shared: str, restarts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sets these variables."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processes.join(TrainConfig(), Precision("no", tf32=False))
    said = ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(warning.message) for warning in caught]
    assert said.count(True) == ((rank, shared, restarts) == ("0", "True", "2"))


@pytest.mark.slow
def test_killed_processes_are_restarted_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: of two processes, a sum has one order."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "2"]
    for command in (
        [sys.executable, "-c", WHOLE, str(tmp_path)],
        [*launch, "--nproc-per-node", "2", elastic.__file__, str(tmp_path)],
    ):
        run_apart(command, timeout=600)
    assert len(list(tmp_path.glob("death_*"))) == 2
    assert (tmp_path / "began").read_text().split() == ["0", "2", "4"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert_equal(weights(killed), weights(whole))
    first, second = (
        checkpoint.load_weights(checkpoint.latest(run), ema=True) for run in (killed, whole)
    )
    assert_equal(first, second)
    logs = [[(line["step"], line["loss"]) for line in lines(run)] for run in (killed, whole)]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert len(lines(killed, "eval")) == 1
