"""Whether compilers other than gcc can build the core, as far as a Linux machine can show it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

EXTENSION = re.compile(
    r"__attribute__|__builtin_|__extension__|__int128|\btypeof\b|\basm\b|__restrict|#\s*pragma GCC"
)
WITH_EXTENSIONS = {
    # vector registers, and what they are made of
    "core/common/cpu/simd.h", "core/common/cpu/channels.h", "core/ms_deform_attn/cpu/points.h",
    "core/ms_deform_attn/cpu/taps.h", "core/mask_points/cpu/lanes.h", "core/common/exp_log.h",
    # counting bits
    "core/common/cpu/bits.h", "core/mask_rle/cpu/kernels.cpp",
    # reading memory ahead
    "core/common/cpu/strided_copy.h", "core/mask_iou/cpu/kernels.cpp",
    # functions that are always inlined
    "core/common/target.h", "core/common/arena.h",
    # what the processor can do
    "core/common/cpu/dispatch.cpp",
    # products that do not overflow
    "core/common/check.cpp", "core/ms_deform_attn/ms_deform_attn.cpp",
    "core/masked_point_pool/masked_point_pool.cpp",
}  # fmt: skip
"""gcc and clang, clang-cl included, know these extensions. Microsoft's own compiler does not, so it
cannot build the CPU kernels."""

SOURCES = sorted(
    path
    for path in (REPOSITORY / "core").rglob("*.cpp")
    if path.name != "runtime.cpp"  # needs CUDA's headers
)
CLANGS = {
    Path(found).resolve(): name
    for name in ("clang++", *(f"clang++-{number}" for number in range(14, 22)))
    if (found := shutil.which(name))
}  # several names may be one compiler
STRICT = (
    "-fsyntax-only", "-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{REPOSITORY / 'core'}",
    "-DALIGNMASK_PLAIN_THREADS", '-DALIGNMASK_CUDA_WHY_NOT="strict"',
)  # fmt: skip
MINGW = "/usr/lib/gcc/x86_64-w64-mingw32/12-posix/include/c++"
"""Of Debian 12's g++-mingw-w64-x86-64-posix: the MinGW that has threads."""
TARGETS = {
    "Linux with libc++": ("-stdlib=libc++", "-DALIGNMASK_X86"),
    "Linux on ARM with libc++": (
        "--target=aarch64-linux-gnu", "-stdlib=libc++", "-idirafter", "/usr/aarch64-linux-gnu/include",
    ),
    "Windows": (
        "--target=x86_64-w64-windows-gnu", "-DALIGNMASK_X86",
        "-nostdinc++", "-isystem", MINGW, "-isystem", f"{MINGW}/x86_64-w64-mingw32",
    ),
}  # fmt: skip
PROBE = "#include <mutex>\n#include <thread>\nstd::mutex mutex; std::thread thread;\n"


def code(path: Path) -> str:
    """A file without its comments."""
    return re.sub(r"//.*", "", path.read_text())


def test_extensions_of_the_language_are_in_named_files_alone() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("core", "bindings")
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in (".h", ".cpp") and EXTENSION.search(code(path))
    }
    assert found == WITH_EXTENSIONS


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("clang", CLANGS.values())
def test_clang_compiles_the_core_as_standard_cpp(clang: str, target: str, tmp_path: Path) -> None:
    """Every file, for every instruction set, without a warning. Nothing is linked or run."""
    probe = tmp_path / "probe.cpp"
    probe.write_text(PROBE)
    if subprocess.run([clang, *TARGETS[target], *STRICT, probe], capture_output=True).returncode:
        pytest.skip(f"{clang} has no headers of {target}")
    isas = {"baseline": (), "avx2": ("-march=x86-64-v3",), "avx512": ("-march=x86-64-v4",)}
    wrong = ""
    for path in SOURCES:
        several = path.parent.name == "cpu" and path.name == "kernels.cpp" and "ARM" not in target
        for isa, flags in isas.items() if several else [("baseline", ())]:
            done = subprocess.run(
                [clang, *TARGETS[target], *STRICT, f"-DALIGNMASK_ISA={isa}", *flags, path],
                capture_output=True, text=True,
            )  # fmt: skip
            wrong += done.stderr
    assert not wrong, wrong[:4000]
