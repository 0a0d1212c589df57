"""What only a GPU has: streams, graphs, several devices, other libraries' arrays, and NVIDIA's
checkers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignmask import _core, ops
from alignmask.ops import _backend
from tests.conftest import REPOSITORY
from tests.gpu import calls

OPS = list(calls.SHAPES)


def close(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_in_a_graph(op: str) -> None:
    """Captured once, replayed with other inputs in the same memory."""
    given = calls.to(calls.inputs(op, True, torch.float32), "cuda")
    expected = calls.run(op, given)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):  # kernels are loaded, and compiled, before a capture
            calls.run(op, given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = calls.run(op, given)
    first = next(x for x in given if isinstance(x, torch.Tensor))
    for scale in (1.0, 0.5):
        first.mul_(scale)
        expected = calls.run(op, given)
        graph.replay()
        close(captured, expected)


@pytest.mark.parametrize("op", OPS)
def test_on_the_current_stream(op: str) -> None:
    """Inputs that a stream is still writing are seen as they will be; nothing waits for the
    device."""
    given = calls.to(calls.inputs(op, True, torch.float32), "cuda")
    expected = calls.run(op, given)
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # 50 ms: longer than a busy host takes to ask for all four.
            torch.cuda._sleep(100_000_000)
            late = [x.clone() if isinstance(x, torch.Tensor) else x for x in given]
            results.append(calls.run(op, late))
    assert not all(stream.query() for stream in streams)
    for stream, result in zip(streams, results, strict=True):
        stream.synchronize()
        close(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_on_a_second_device(op: str) -> None:
    given = calls.inputs(op, True, torch.float32)
    with torch.cuda.device(0):
        results = calls.run(op, calls.to(given, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert {result.device.index for result in results} == {1}
    close(results, calls.run(op, calls.to(given, "cuda:0")))


@pytest.mark.parametrize("way", ["aot", "jit"])
def test_both_ways(way: str) -> None:
    """Each that is open on this machine, in a process of its own, by the tests of the ops."""
    major, minor = torch.cuda.get_device_capability()
    problem = {
        "aot": _backend.aot_problem(_core.cuda_build(), 10 * major + minor),
        "jit": _backend.jit_problem(10 * major + minor),
    }[way]
    if problem:
        pytest.skip(problem)
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu/test_ops.py", "-k", "cuda"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"ALIGNMASK_CUDA": way}, timeout=600
    )
    assert done.returncode == 0


def test_errors_of_launches_do_not_stay() -> None:
    given = calls.to(calls.inputs("ms_deform_attn", False, torch.float32), "cuda")
    given[3] = given[3].cpu()  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match="ms_deform_attn: weights is on cpu, but value is on cuda:0"
    ):
        ops.ms_deform_attn(*given)  # type: ignore[arg-type]
    torch.cuda.synchronize()


def test_cupy_arrays() -> None:
    """In by DLPack, out as CuPy arrays, without a copy and on the same device."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    given = calls.to(calls.inputs("mask_iou", True, torch.float32), "cuda")
    iou = ops.mask_iou(*(cupy.from_dlpack(x) for x in given))
    assert isinstance(iou, cupy.ndarray)
    close([torch.from_dlpack(iou)], calls.run("mask_iou", given))
    arrays = [cupy.from_dlpack(x) for x in given]
    assert all(hasattr(array, "__cuda_array_interface__") for array in arrays)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str, tmp_path: Path) -> None:
    """Our kernels alone: initcheck is left out, since it would have to watch torch's, too, which
    write what ours read."""
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not installed; it is part of the CUDA toolkit")
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--kernel-regex",
        "kns=alignmask",
        "--error-exitcode",
        "9",
    ]
    program = [sys.executable, "bench/gpu/smoke.py", "small"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "GPU_REPORT_WORK": str(tmp_path)}
    done = subprocess.run(
        [*command, *program],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
