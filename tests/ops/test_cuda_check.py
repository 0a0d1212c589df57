"""The gate on the CUDA kernels counts right and can fail."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY
from tests.simt import _simt


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    names = ("cuda_check", "gpu_code", "nvcc_code", "roofline")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name)


def test_no_instantiation_is_missed(modules: dict[str, ModuleType]) -> None:
    gpu_code = modules["gpu_code"]
    assert {
        name for op in gpu_code.ops() for name in gpu_code.kernel_names(op)
    } == _simt.all_kernels()


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "threads", "occupancy"),
    [
        (80, 32, 0, 256, 1.0),
        (80, 64, 0, 256, 0.5),  # 65536 registers / (64 · 256) = 4 blocks of 8 warps
        (80, 65, 0, 256, 0.375),  # 72 are handed out
        (70, 32, 49152, 256, 0.25),  # two blocks of shared memory
        (80, 16, 83968, 128, 0.0625),  # with the system's 1 KiB only one fits
        (75, 32, 0, 256, 1.0),
        (86, 40, 0, 256, 1.0),  # six blocks are all that it can hold
        (80, 16, 0, 32, 0.5),  # at most 32 blocks
    ],
)
def test_occupancy(
    modules: dict[str, ModuleType],
    architecture: int,
    registers: int,
    shared: int,
    threads: int,
    occupancy: float,
) -> None:
    kernel = modules["gpu_code"].Kernel(
        "op", "f", architecture, registers, shared, 0, 0, threads, None
    )
    assert kernel.occupancy == occupancy


def test_resources_beyond_their_limits_fail(modules: dict[str, ModuleType]) -> None:
    check = modules["cuda_check"].check_resources
    limits = {
        "all": {"stack": 0, "spills": 0, "occupancy": 0.5},
        "exceptions": [{"kernels": "slow<.*>", "architectures": [80], "allowed": {"stack": 8}}],
        "kernels": {
            "f<float>": {"registers": 64, "shared": 0},
            "slow<int>": {"registers": 64, "shared": 0},
        },
    }
    good = modules["gpu_code"].Kernel("op", "f<float>", 80, 64, 0, 0, 0, 256, None)
    change = dataclasses.replace
    assert not check([good], limits)
    assert not check([change(good, name="slow<int>", stack=8)], limits)
    for bad in (
        change(good, registers=65),
        change(good, shared=4),
        change(good, stack=8),
        change(good, spills=4),
        change(good, name="slow<int>", stack=16),
        change(good, name="slow<int>", stack=8, architecture=90),
        change(good, name="new<int>", spills=4),
    ):
        assert check([bad], limits), bad


NVCC_SAYS = """ptxas info    : 0 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN9alignmask1fINS_4HalfELi4ELb1EEEvNS_6ParamsE' for 'sm_90'
ptxas info    : Function properties for _ZN9alignmask1fINS_4HalfELi4ELb1EEEvNS_6ParamsE
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 16468 bytes smem
ptxas info    : Compiling entry function '_ZN9alignmask1fINS_4HalfELi4ELb1EEEvNS_6ParamsE' for 'sm_80'
ptxas info    : Function properties for _ZN9alignmask1fINS_4HalfELi4ELb1EEEvNS_6ParamsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="there is no c++filt")
def test_what_nvcc_s_own_code_uses_is_checked(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Also when nothing was compiled again, so that nvcc said nothing."""
    kernel = modules["gpu_code"].Kernel("op", "f<Half, 4, true>", 90, 60, 0, 0, 0, 256, None)
    limits = {
        "all": {"stack": 0, "spills": 0, "occupancy": 0.1},
        "exceptions": [],
        "kernels": {kernel.name: {"shared": 0}},
    }
    for log in (NVCC_SAYS, "ninja: no work to do."):
        used = modules["cuda_check"].resources_of_the_build(tmp_path / "kept.json", log)
        (mine,) = modules["nvcc_code"].kernels(
            used, [kernel, dataclasses.replace(kernel, name="g<Half>")]
        )
        assert (mine.registers, mine.shared, mine.stack, mine.spills) == (64, 16468, 8, 8)
        problems = modules["cuda_check"].check_resources([mine], limits)
        assert [problem.split(": ")[1] for problem in problems] == [
            "shared 16468, allowed are 0", "stack 8, allowed are 0", "spills 8, allowed are 0",
        ]  # fmt: skip
        older = modules["nvcc_code"].kernels(used, [dataclasses.replace(kernel, architecture=80)])
        assert [(k.registers, k.shared, k.spills) for k in older] == [(32, 0, 0)]


def test_missing_instructions_fail(modules: dict[str, ModuleType]) -> None:
    check = modules["cuda_check"].check_instructions
    rule = {
        "kernels": "f<.*>",
        "architectures": [80],
        "with": [r"LDG\.E\.128"],
        "without": ["ATOMG"],
        "why": "wide",
    }
    good = modules["gpu_code"].Kernel(
        "op", "f<float>", 80, 64, 0, 0, 0, 256, "0000 LDG.E.128 R0, [R2.64]"
    )
    assert not check([good], [rule])
    assert check([dataclasses.replace(good, sass="0000 LDG.E R0, [R2.64]")], [rule])
    assert check([dataclasses.replace(good, sass=f"{good.sass}\n0010 ATOMG.E.ADD")], [rule])
    # A rule that nothing matches.
    assert check([dataclasses.replace(good, name="g<float>")], [rule])


def test_loops_are_found(modules: dict[str, ModuleType]) -> None:
    inner = ".L_3:\n0030 FFMA\n0040 @P1 BRA `(.L_3)\n"
    sass = (
        f"0000 MOV\n.L_1:\n0010 LDG.E.128\n0020 @P0 BRA `(.L_2)\n{inner}.L_2:\n0050 BRA `(.L_1)\n"
    )
    assert [len(body) for body in modules["roofline"].loops(sass)] == [2, 5]
    assert modules["roofline"].loop(sass, "FFMA") == 2
    assert modules["roofline"].loop(sass, "FFMA", "LDG") == 5
    with pytest.raises(ValueError, match="no loop with RED"):
        modules["roofline"].loop(sass, "RED")
