"""What a run prints, to a file and to a terminal; what its progress line says."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

from alignmask.training import log as log_module
from alignmask.training.log import Log, duration, peak_of_the_process
from tests.training import talkative

SAID = [
    f"{words} after step {step}"
    for step in range(1, 7)
    for words in ("printed", "alignmask: warning: warned")
]
PROGRESS = r"{}  \d+\.\d\d it/s  ETA 0:00:\d\d  peak \d+\.\d GiB  loss \S+ cls .*"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the same run prints to a file and to a terminal of 200 columns."""
    folder = tmp_path_factory.mktemp("outputs")
    root = str(Path(talkative.__file__).parents[2])
    size = {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    environment = {**os.environ, **size, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    with (folder / "log").open("w") as file:
        processes = [
            subprocess.Popen(
                [sys.executable, talkative.__file__, str(folder / name)],
                env=environment, stdin=its, stdout=out, stderr=out,
            )
            for name, out in (("file", file), ("terminal", its))
        ]  # fmt: skip
    os.close(its)
    received = bytearray()
    try:
        while select.select([ours], [], [], 120)[0] and (block := os.read(ours, 2**16)):
            received += block
    except OSError:  # how Linux says that the other side is closed
        pass
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return (folder / "log").read_text(), received.decode()


def test_a_file_gets_whole_lines(outputs: tuple[str, str]) -> None:
    lines = outputs[0].splitlines()
    assert set(SAID) <= set(lines)
    assert not re.search(r"[\r\x1b━]", outputs[0])
    steps = [line for line in lines if line.startswith("step ")]
    for step, line in zip(("step 2/6", "step 4/6", "step 6/6"), steps, strict=True):
        assert re.fullmatch(PROGRESS.format(step), line), line
    assert sum(line.startswith("loaded image") for line in lines) == 6 * 2 + 3
    assert all(re.fullmatch(r"loaded image \d", line) for line in lines if "loaded" in line)


def test_a_terminal_shows_one_bar_below_whole_lines(outputs: tuple[str, str]) -> None:
    """Also where a data-loading process, the training process and a warning print meanwhile."""
    lines = screen(outputs[1])
    assert [line for line in lines if " after step " in line] == SAID
    (bar,) = (line for line in lines if "━" in line)
    assert bar.startswith("train ━")
    assert re.search(r"6/6 .* ETA 0:00:00  peak \d\.\d GiB loss ", bar)
    assert lines[-1] == bar
    assert not any(line.startswith("step ") for line in lines)
    assert all(re.fullmatch(r"loaded image \d", line) for line in lines if "loaded" in line)


def screen(text: str) -> list[str]:
    """The lines that a terminal of unlimited height shows; it knows what rich sends."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part[0] != "\x1b":
            before = lines[row].ljust(column)
            lines[row] = before[:column] + part + before[column + len(part) :]
            column += len(part)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        else:
            assert part[-1] in "mhl", part  # colours, the cursor's visibility
    return [line.rstrip() for line in lines if line.strip() and "─" not in line]


def test_the_rest_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 iterations at 0.5 a second are two minutes, unless the time limit comes first."""
    monkeypatch.setattr(log_module, "peak_of_the_process", lambda: 3 * 2**29)
    values = {"loss": 2.0, "it_per_s": 0.5, "lr": 1.0}
    with Log(tmp_path, 0, 100) as log:
        log.metrics(40, values)
        log.metrics(40, values, seconds_left=61.2)
        log.metrics(40, values, seconds_left=-1)
    rest = [re.sub(r"\s+", " ", line) for line in capsys.readouterr().err.splitlines()]
    line = "step 40/100 0.50 it/s ETA {} peak 1.5 GiB loss 2"
    assert rest == [line.format(eta) for eta in ("0:02:00", "0:01:01", "0:00:00")]
    assert duration(3600 * 27 + 61) == "27:01:01"


def test_the_peak_is_of_the_gpu_or_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = peak_of_the_process()
    assert 2**26 < before < 2**40
    large = torch.ones(2**27 + before // 4)  # half a GiB more than there has ever been
    del large
    assert peak_of_the_process() > before + 2**28
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 77)
    assert peak_of_the_process() == 77
