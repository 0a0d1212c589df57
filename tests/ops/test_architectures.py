"""Which GPUs the kernels are compiled for by nvcc of several versions, and what their launch bounds
are there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alignmask.ops.jit import nvrtc
from tests.conftest import REPOSITORY

BUNDLED = Path(sys.executable).parent / "cmake"
CMAKE = str(BUNDLED) if BUNDLED.exists() else shutil.which("cmake")
LIBRARY = nvrtc.find(13) or nvrtc.find(12)
needs_cmake = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")


def cmake(folder: Path, script: str) -> str:
    """What a script says that knows our functions."""
    path = folder / "script.cmake"
    path.write_text(f"include({REPOSITORY / 'cmake' / 'AlignMaskArchitectures.cmake'})\n{script}")
    done = subprocess.run([str(CMAKE), "-P", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


@needs_cmake
@pytest.mark.parametrize(
    ("version", "architectures"),
    [
        ("11.8", "70-real;75-real;80-real;86-real;89"),
        ("12.0", "70-real;75-real;80-real;86-real;89"),
        ("12.1", "70-real;75-real;80-real;86-real;89-real;90"),
        ("13.0", "75-real;80-real;86-real;89-real;90-real;100-real;120"),
    ],
)
def test_architectures_of_a_release(tmp_path: Path, version: str, architectures: str) -> None:
    script = f'alignmask_architectures_of_a_release({version} found)\nmessage("${{found}}")'
    assert cmake(tmp_path, script) == architectures


@needs_cmake
@pytest.mark.parametrize(
    ("version", "possible", "others"),
    [("12.0", "80-real", "sm_61;sm_90;sm_120"), ("12.1", "80-real;90-real", "sm_61;sm_120")],
)
def test_gpus_that_nvcc_compiles_for(
    tmp_path: Path, version: str, possible: str, others: str
) -> None:
    """A made-up nvcc that knows up to sm_90."""
    nvcc = tmp_path / "nvcc"
    says = f"Cuda compilation tools, release {version}, V{version}.1"
    nvcc.write_text(
        f'#!/bin/sh\n[ $1 = --version ] && echo "{says}" || echo "sm_61 sm_80 sm_90 "\n'
    )
    nvcc.chmod(0o755)
    script = (
        f"set(ALIGNMASK_NVCC {nvcc})\n"
        'alignmask_that_nvcc_compiles_for("61-real;80-real;90-real;120-real" possible others)\n'
        'message("${possible} ${others}")'
    )
    assert cmake(tmp_path, script) == f"{possible} {others}"


@pytest.mark.skipif(LIBRARY is None, reason="no NVRTC: torch without CUDA does not bring it")
@pytest.mark.parametrize(
    ("architecture", "threads"),
    [
        (75, 1024),
        (80, 2048),
        (86, 1536),
        (88, 1536),
        (89, 1536),
        (90, 2048),
        (100, 2048),
        (110, 1536),
        (120, 1536),
    ],
)
def test_threads_that_a_multiprocessor_holds(
    tmp_path: Path, architecture: int, threads: int
) -> None:
    """As NVIDIA's table of technical specifications per compute capability says."""
    assert LIBRARY is not None
    try:
        LIBRARY.target(architecture)
    except RuntimeError as error:
        pytest.skip(str(error))
    for right in (True, False):
        text = f"static_assert(ALIGNMASK_RESIDENT_THREADS == {threads if right else threads + 1});"
        header = tmp_path / "bounds.cuh"
        header.write_text(
            f'#include "common/cuda/device.cuh"\n{text}\nextern "C" __global__ void kernel() {{}}\n'
        )
        if right:
            LIBRARY.compile(str(header), ["kernel"], architecture, REPOSITORY / "core")
        else:
            with pytest.raises(RuntimeError, match=r"static assertion failed|static_assert"):
                LIBRARY.compile(str(header), ["kernel"], architecture, REPOSITORY / "core")
