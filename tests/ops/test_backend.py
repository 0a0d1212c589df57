"""Which way the ops take to a GPU, for machines that are not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignmask.ops import _backend, _library

BUILD = {
    "architectures": "75-real 80-real 90",
    "why_not": "",
    "compiler": "nvcc 13.0",
    "runtime": 13000,
    "driver": 13010,
}
NONE = BUILD | {"architectures": "", "why_not": "there is no nvcc"}


@pytest.mark.parametrize(
    ("build", "architecture", "problem"),
    [
        (BUILD, 75, ""),
        (BUILD, 86, ""),  # code for sm_80 runs on later minor versions
        (BUILD, 90, ""),
        (BUILD, 120, ""),  # from PTX of sm_90
        (BUILD, 70, "none compiled for sm_70, only 75-real 80-real 90"),
        (BUILD | {"architectures": "86-real"}, 80, "none compiled for sm_80"),
        (BUILD | {"architectures": "80-virtual"}, 75, "none compiled for sm_75"),
        (BUILD | {"architectures": "80-virtual"}, 90, ""),
        (BUILD | {"architectures": "80-virtual"}, 80, ""),
        (
            BUILD | {"driver": 12080},
            80,
            "compiled with CUDA 13.0, but the driver can do CUDA 12.8 only",
        ),
        (NONE, 80, "no kernels compiled with the package: there is no nvcc"),
    ],
)
def test_where_compiled_kernels_run(build: dict[str, Any], architecture: int, problem: str) -> None:
    found = _backend.aot_problem(build, architecture)
    assert found.startswith(problem) if problem else not found


@pytest.mark.parametrize(
    ("wish", "aot", "jit", "name", "fails"),
    [
        ("auto", "", "", "aot", False),
        ("auto", "no", "", "jit", False),
        ("auto", "no", "no", "off", False),
        ("aot", "", "", "aot", False),
        ("aot", "no", "", "aot", True),
        ("jit", "", "", "jit", False),
        ("jit", "", "no", "jit", True),
        ("off", "", "", "off", False),
    ],
)
def test_choice(wish: str, aot: str, jit: str, name: str, fails: bool) -> None:
    way = _backend.choose(wish, aot, jit)
    assert (way.name, bool(way.problem)) == (name, fails)


def test_wishes() -> None:
    assert (
        _backend.wish({})
        == _backend.wish({"ALIGNMASK_CUDA": ""})
        == _backend.wish({"ALIGNMASK_CUDA": "ON"})
        == "auto"
    )
    assert _backend.wish({"ALIGNMASK_CUDA": "JIT"}) == "jit"
    with pytest.raises(
        ValueError, match="ALIGNMASK_CUDA=fast: expected one of auto, aot, jit, off"
    ):
        _backend.wish({"ALIGNMASK_CUDA": "fast"})


class Core:
    def __init__(self, build: dict[str, Any]) -> None:
        self.cuda_build: Callable[[], dict[str, Any]] = lambda: build
        self.launchers: dict[int, object] = {}
        self.set_launcher = self.launchers.__setitem__


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a V100 and an A100, a driver for CUDA 13, and CuPy."""
    monkeypatch.delenv("ALIGNMASK_CUDA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(7, 0), (8, 0)].__getitem__)
    monkeypatch.setattr(_backend, "jit_problem", lambda architecture: "")
    monkeypatch.setattr(_backend, "jit_launcher", lambda core, ops: "launcher")


def test_every_gpu_has_its_own_way(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(BUILD)
    gpus = _backend.Gpus(core, ("op",))
    assert [way.name for way in gpus.ways()] == ["jit", "aot"]
    assert [gpus.usable(device) for device in range(3)] == [True, True, False]
    assert core.launchers == {0: "launcher"}

    monkeypatch.setattr(_backend, "jit_problem", lambda architecture: "no CuPy")
    gpus = _backend.Gpus(Core(BUILD), ("op",))
    assert [way.name for way in gpus.ways()] == ["off", "aot"]
    # One that is too old does not slow the other.
    assert [gpus.usable(device) for device in range(2)] == [False, True]
    assert "no CuPy" in gpus.ways()[0].text


def test_a_forced_way_that_is_closed_raises(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMASK_CUDA", "aot")
    gpus = _backend.Gpus(Core(BUILD), ("op",))
    with pytest.raises(
        RuntimeError, match="ALIGNMASK_CUDA=aot does not work on cuda:0: none compiled for sm_70"
    ):
        gpus.usable(0)
    assert gpus.usable(1)
    monkeypatch.setenv("ALIGNMASK_CUDA", "jit")
    core = Core(BUILD)
    assert all(map(_backend.Gpus(core, ("op",)).usable, range(2)))
    assert core.launchers == {0: "launcher", 1: "launcher"}
    monkeypatch.setenv("ALIGNMASK_CUDA", "off")
    assert not any(map(_backend.Gpus(Core(BUILD), ("op",)).usable, range(2)))


@pytest.mark.parametrize(
    ("cuda", "architecture", "problem"),
    [
        # NVRTC knows it, the kernels do not.
        ("12.6", 61, "the kernels need sm_70 or newer, this is sm_61"),
        ("11.8", 80, "torch was built with CUDA 11, kernels are compiled with 12 or 13"),
        (None, 80, "torch was built without CUDA"),
    ],
)
def test_where_kernels_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, architecture: int, problem: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _backend.jit_problem(architecture) == problem


def test_the_ops_follow(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_gpus", _backend.Gpus(Core(BUILD), _library.OPS))
    gpu = torch.device("cuda", 0)
    assert all(_library.has_kernel(op, gpu) for op in _library.OPS)
    text = "kernel (compiled on first use) or kernel (compiled with the package)"
    assert _library.implementation("mask_iou", "cuda") == text
    with _library.use_reference("mask_iou"):
        assert not _library.has_kernel("mask_iou", gpu)
        assert _library.implementation("mask_iou", "cuda") == "reference"


def test_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    gpus = _backend.Gpus(Core(BUILD), _library.OPS)
    assert not gpus.usable(0)
    assert _library.implementation("mask_iou", "cuda") == "reference (no GPU)"
    assert _library.stream(torch.ones(1)) == 0
