"""Claims: one holder at a time, whatever happens to the processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from alignmask.ablation import claims as module
from alignmask.ablation.claims import Claims


def quick(folder: Path) -> Claims:
    return Claims(folder, heartbeat=0.05, stale_after=0.5)


def another_machine(monkeypatch: pytest.MonkeyPatch, name: str = "another") -> None:
    monkeypatch.setattr(module, "_machine", lambda: name)


def test_a_claim_is_held_until_it_is_released(tmp_path: Path) -> None:
    claims = Claims(tmp_path / "claims")
    assert claims.holder("a") is None
    assert not claims.folder.exists()  # looking leaves nothing
    with claims.take("a"):
        assert claims.take("a") is None
        assert Claims(tmp_path / "claims").take("a") is None
        assert claims.holder("a").pid == os.getpid()
        assert claims.holder("ab") is None
        claims.take("ab").__exit__()
    assert claims.holder("a") is None
    with claims.take("a") as second:
        assert second.path.name == "a.2"


def test_a_suspended_process_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same machine the lock tells them apart, however old the last touch is; another machine
    must take it for dead."""
    with Claims(tmp_path).take("a") as claim:
        os.utime(claim.path, (time.time() - 1e4, time.time() - 1e4))
        assert Claims(tmp_path).holder("a").pid == os.getpid()
        assert Claims(tmp_path).take("a") is None
        with monkeypatch.context() as patch:
            another_machine(patch)
            assert Claims(tmp_path).holder("a") is None


def _take_and_hang(folder: Path, ready: multiprocessing.Event) -> None:
    with Claims(folder).take("a"):
        ready.set()
        time.sleep(60)


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_take_and_hang, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    claims = Claims(tmp_path)
    assert claims.holder("a").pid == process.pid
    assert claims.take("a") is None
    process.kill()
    process.join()
    assert claims.holder("a") is None
    with claims.take("a") as claim:
        assert claim.path.name == "a.2"


def test_another_machines_claim_lives_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quick(tmp_path).take("a"):
        another_machine(monkeypatch)
        time.sleep(0.8)  # longer than stale_after: it is being touched
        assert quick(tmp_path).holder("a") is not None
        assert quick(tmp_path).take("a") is None


def test_a_silent_machine_loses_its_claim_and_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = threading.Event()
    claims = quick(tmp_path)
    first = claims.take("a", on_lost=noticed.set)
    away = threading.Event()
    monkeypatch.setattr(os, "utime", lambda *_: away.set())  # its touches do not arrive any more
    assert away.wait(5)
    another_machine(monkeypatch)
    time.sleep(0.7)
    with quick(tmp_path).take("a", on_lost=pytest.fail) as second:
        assert noticed.wait(5)
        assert first.lost
        assert second.path.name == "a.2"
        first.__exit__()  # leaves the other's claim alone
        assert quick(tmp_path).holder("a") is not None
        monkeypatch.undo()


def test_by_default_a_lost_claim_terminates_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    module._terminate()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_claim_without_content_is_given_time(tmp_path: Path) -> None:
    """Made, and not written yet; or its process died just then."""
    (tmp_path / "a.1").touch()
    claims = quick(tmp_path)
    assert claims.holder("a") is not None
    assert claims.take("a") is None
    os.utime(tmp_path / "a.1", (time.time() - 10, time.time() - 10))
    assert claims.holder("a") is None
    claims.take("a").__exit__()


@pytest.mark.parametrize("now", [0.0, 4e9])
def test_a_wrong_clock_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    with quick(tmp_path).take("a"):
        another_machine(monkeypatch)
        monkeypatch.setattr(time, "time", lambda: now)
        assert quick(tmp_path).holder("a") is not None


def _contend(folder: Path, machine: str, start: float, wins: multiprocessing.Queue) -> None:
    module._machine = lambda: machine
    time.sleep(max(0, start - time.time()))
    won = []
    for number in range(20):
        claim = Claims(folder).take(f"item{number}")
        if claim is not None:
            won.append(f"item{number}")  # and it is held until the process ends
    wins.put(won)
    time.sleep(1)
    os._exit(0)


@pytest.mark.parametrize("machines", [1, 4])
@pytest.mark.parametrize("after", ["nothing", "stale claims"])
def test_of_many_contenders_exactly_one_wins_each(
    tmp_path: Path, machines: int, after: str
) -> None:
    if after == "stale claims":
        for number in range(20):
            path = tmp_path / f"item{number}.1"
            path.write_text(json.dumps({"host": "gone", "machine": "gone", "pid": 1}))
            os.utime(path, (time.time() - 1e4, time.time() - 1e4))
    context = multiprocessing.get_context("fork")
    wins = context.Queue()
    start = time.time() + 0.3
    processes = [
        context.Process(target=_contend, args=(tmp_path, f"machine{i % machines}", start, wins))
        for i in range(4)
    ]
    for process in processes:
        process.start()
    won = [item for _ in processes for item in wins.get(timeout=30)]
    for process in processes:
        process.join()
    assert sorted(won) == sorted(f"item{number}" for number in range(20))


def test_a_file_system_that_is_away_for_a_moment_does_not_end_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utime, calls = os.utime, []

    def sometimes(path: Path, *times: object) -> None:
        calls.append(path)
        if len(calls) < 3:
            raise OSError("stale file handle")
        utime(path, *times)

    monkeypatch.setattr(os, "utime", sometimes)
    with quick(tmp_path).take("a") as claim, contextlib.suppress(TimeoutError):
        before = claim.path.stat().st_mtime_ns
        for _ in range(100):
            if claim.path.stat().st_mtime_ns > before:
                break
            time.sleep(0.05)
        else:
            pytest.fail("no heartbeat")


def test_a_staleness_that_one_missed_heartbeat_would_cause_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than 3 heartbeats"):
        Claims(tmp_path, heartbeat=10, stale_after=20)
