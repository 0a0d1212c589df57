"""What happens around a run and to its files: a second process, damage, a file system without
locks. It is said, and the run goes on from what is sound."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignmask
from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.training.run_lock import RunInUse, hold
from alignmask.training.trainer import Trainer, train
from tests.training.runs import assert_equal, config, weights

HOLD = """
import sys, pathlib
from alignmask.training.run_lock import hold
hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def finished(shapes: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 iterations with checkpoints after 2, 4 and 6."""
    out = tmp_path_factory.mktemp("finished")
    return train(config(shapes, out, checkpoint_every=2, keep_checkpoints=3))


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains the run `tmp_path / "run"`, as far as its lock is concerned."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_process_is_refused_while_the_first_lives(
    other_process: subprocess.Popen[str], shapes: DataConfig, tmp_path: Path, resume: bool
) -> None:
    for name in ("config.json", "precious"):
        (tmp_path / "run" / name).touch()
    with pytest.raises(RunInUse, match=f"run is being trained by process {other_process.pid} on "):
        Trainer(config(shapes, tmp_path), resume)
    assert (tmp_path / "run" / "precious").exists()
    other_process.kill()
    other_process.wait()
    Trainer(config(shapes, tmp_path), resume)


def test_a_process_may_train_a_run_twice_and_keeps_it(tmp_path: Path) -> None:
    hold(tmp_path)
    hold(tmp_path)
    second = [sys.executable, "-c", HOLD, str(tmp_path)]
    refused = subprocess.run(second, input="", capture_output=True, text=True, check=False)
    assert "RunInUse" in refused.stderr


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with pytest.warns(UserWarning, match="knows no locks"):
        hold(tmp_path)


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "flipped weights": lambda folder: flip(folder / "model.safetensors"),
    "truncated optimizer": lambda folder: truncate(folder / "state.pt"),
    "missing weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_bytes(b""),
    "truncated config": lambda folder: truncate(folder / "config.json"),
    "meta of zeros": lambda folder: (folder / "meta.json").write_bytes(bytes(300)),
    "checksums of no use": lambda folder: (folder / "checksums.json").write_bytes(b"\xff{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    finished: Path, shapes: DataConfig, tmp_path: Path, damage: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    newest = run / "checkpoints" / "step_0000006"
    DAMAGES[damage](newest)
    with pytest.warns(UserWarning, match="step_0000006") as said:
        trainer = Trainer(config(shapes, tmp_path, checkpoint_every=2, keep_checkpoints=3))
    assert "an older one is used" in str(said[-1].message)
    assert trainer.step == 4
    assert (run / "checkpoints" / "damaged_step_0000006").is_dir()
    if damage == "flipped weights":  # one of them to the end
        trainer.run()
        assert_equal(weights(run), weights(finished))
        assert (run / "checkpoints" / "damaged_step_0000006").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    finished: Path, shapes: DataConfig, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    settings = config(shapes, tmp_path, checkpoint_every=2, keep_checkpoints=3)
    with (
        pytest.raises(ValueError, match=r"all 3 checkpoints are damaged.*--no-resume"),
        pytest.warns(UserWarning, match="is damaged"),
    ):
        Trainer(settings)
    assert len(list((run / "checkpoints").glob("step_*"))) == 3
    assert Trainer(settings, resume=False).step == 0


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.pt"])
def test_a_flipped_bit_anywhere_in_a_tensor_file_is_an_error_that_names_it(
    shapes: DataConfig, tmp_path: Path, name: str
) -> None:
    run = train(config(shapes, tmp_path, iterations=1, ema=0.5))
    folder = checkpoint.latest(run)
    assert folder is not None
    flip(folder / name)
    with pytest.raises(checkpoint.DamagedCheckpoint, match=f"{name} is damaged"):
        checkpoint.check(folder)
    if name == "ema.safetensors":
        with pytest.raises(checkpoint.DamagedCheckpoint, match=f"{name} is damaged"):
            alignmask.load(folder)
    if name == "state.pt":
        with pytest.raises(checkpoint.DamagedCheckpoint, match=f"{name} is damaged"):
            checkpoint.load_state(folder)
        alignmask.load(folder)  # prediction does not need it


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 5), (2, 2)])
def test_kills_at_random_moments_change_nothing(processes: int, kills: int) -> None:
    """`python -m tests.training.kills` does it as often as one likes; the log has 200."""
    command = [sys.executable, "-m", "tests.training.kills", "--kills", str(kills)]
    command += ["--processes", str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout
