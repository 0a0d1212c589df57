"""The kernels' machine code, without a GPU: what NVRTC makes of every instantiation, its resources
and its instructions.

Results are kept in build/gpu_code by what they depend on, so that only what changed is compiled
again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "core"
KEPT = REPOSITORY / "build" / "gpu_code"
VOLTA_NVRTC = REPOSITORY / "build" / "nvrtc12"
"""Where `make cuda-check` puts NVRTC 12.9, the last that compiles for Volta."""

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has (CUDA C++ Programming Guide, technical specifications per compute
    capability)."""

    threads: int
    blocks: int
    shared: int
    shared_per_block: int
    """That the system takes of every block."""
    registers: int = 65536


LIMITS = {
    70: Limits(2048, 32, 96 << 10, 0),
    75: Limits(1024, 16, 64 << 10, 0),
    80: Limits(2048, 32, 164 << 10, 1 << 10),
    86: Limits(1536, 16, 100 << 10, 1 << 10),
    89: Limits(1536, 24, 100 << 10, 1 << 10),
    90: Limits(2048, 32, 228 << 10, 1 << 10),
    100: Limits(2048, 32, 228 << 10, 1 << 10),
    120: Limits(1536, 24, 100 << 10, 1 << 10),
}


@dataclass(frozen=True)
class Kernel:
    """One instantiation for one architecture. Bytes of shared memory and stack; `threads` of a
    block, by its launch bounds."""

    op: str
    name: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spills: int
    threads: int
    sass: str | None
    """The kernel's instructions, one per line, each with its address. None if no disassembler for
    the architecture was found."""

    @property
    def occupancy(self) -> float:
        """Threads that fit on a multiprocessor at once, by registers and shared memory, of those
        that it can hold."""
        limits = LIMITS[self.architecture]
        warps = -(-self.threads // 32)
        registers_of_warp = -(-self.registers * 32 // 256) * 256  # handed out in units of 256
        # By quarters of the multiprocessor.
        by_registers = limits.registers // registers_of_warp // 4 * 4 // warps
        shared = self.shared + limits.shared_per_block
        by_shared = limits.shared // shared if shared else limits.blocks
        blocks = min(by_registers, by_shared, limits.blocks, limits.threads // self.threads)
        return blocks * self.threads / limits.threads


def ops() -> list[str]:
    """Those with CUDA kernels."""
    return sorted(path.parent.parent.name for path in SOURCES.glob("*/cuda/kernels.cuh"))


def kernel_names(op: str) -> list[str]:
    """As core/<op>/cuda/kernels.cuh lists them."""
    text = (SOURCES / op / "cuda" / "kernels.cuh").read_text()
    names = re.findall(r"\bX\((\w+<.*?>|\w+)\)", text)
    return [re.sub(r",\s*", ", ", name) for name in names]


def kernels(op: str, architecture: int) -> list[Kernel]:
    """All kernels of an op for one architecture.

    Raises:
        RuntimeError: They do not compile; or there is no NVRTC for the architecture.
    """
    from alignmask.ops.jit import cache

    library, tool = nvrtc_for(architecture), disassembler()
    names = kernel_names(op)
    about = [
        cache.fingerprint(SOURCES, op, "\n".join(names), architecture, library.version),
        str(tool),
    ]
    about.append(Path(__file__).read_text())
    kept = KEPT / f"{hashlib.sha256('|'.join(about).encode()).hexdigest()}.json"
    if kept.exists():
        return [Kernel(**fields) for fields in json.loads(kept.read_text())]
    compiled = library.compile(
        f"{op}/cuda/kernels.cuh", names, architecture, SOURCES, ["--ptxas-options=--verbose"]
    )
    if re.search(r"\bwarning\b(?!.*deprecated)", compiled.log):
        raise RuntimeError(f"{op} for sm_{architecture}: warnings:\n{compiled.log}")
    used, sass = resources(compiled.log), sass_of(tool, compiled.cubin)
    threads = {
        name: int(count)
        for name, count in re.findall(
            r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", compiled.ptx.decode()
        )
    }
    found = [
        Kernel(
            op,
            name,
            architecture,
            **used[symbol],
            threads=threads[symbol],
            sass=sass and sass[symbol],
        )
        for name, symbol in compiled.symbols.items()
    ]
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=KEPT, delete=False) as file:
        json.dump([asdict(kernel) for kernel in found], file)
    os.replace(file.name, kept)
    return found


def all_kernels(architectures: Iterable[int], chosen: Sequence[str] = ()) -> list[Kernel]:
    """Of several ops and architectures, compiled side by side."""
    pairs = [(op, architecture) for op in chosen or ops() for architecture in architectures]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(kernels, *zip(*pairs, strict=True))
        return [kernel for batch in done for kernel in batch]


def available(architecture: int) -> str:
    """Why kernels cannot be compiled for an architecture here; empty if they can."""
    try:
        nvrtc_for(architecture)
    except RuntimeError as error:
        return str(error)
    return ""


@functools.cache
def nvrtc_for(architecture: int):  # type: ignore[no-untyped-def]
    from alignmask.ops.jit import nvrtc

    if architecture < 75:
        found = list(VOLTA_NVRTC.glob("nvidia/*/lib/libnvrtc.so.12"))
        library = nvrtc.Nvrtc(str(found[0])) if found else nvrtc.find(12)
        wanted = "NVRTC 12.9, which `make cuda-check` installs"
    else:
        library = nvrtc.find(13) or nvrtc.find(12)
        wanted = "NVRTC, which torch with CUDA brings along (or pip install nvidia-cuda-nvrtc)"
    if library is None:
        raise RuntimeError(f"sm_{architecture} needs {wanted}")
    library.target(architecture)
    return library


def disassembler() -> Path | None:
    """nvdisasm from the path, from NVIDIA's Python package, or Triton's, which torch with CUDA
    brings along."""
    if found := shutil.which("nvdisasm"):
        return Path(found)
    for package, pattern in (
        ("nvidia", "*/bin/nvdisasm"),
        ("triton", "backends/nvidia/bin/nvdisasm"),
    ):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if found_here := sorted(Path(root).glob(pattern)):
                return found_here[0]
    return None


def resources(log: str) -> dict[str, dict[str, int]]:
    """From what ptxas says, by symbol."""
    found = {}
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
        )
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if not frame or not registers:
            raise RuntimeError(f"cannot read what ptxas says:\n{entry}")
        stack, stores, loads = map(int, frame.groups())
        found[entry.split("'")[0]] = {
            "registers": int(registers[1]),
            "shared": int(shared[1]) if shared else 0,
            "stack": stack,
            "spills": stores + loads,
        }
    return found


def sass_of(tool: Path | None, cubin: bytes) -> dict[str, str] | None:
    """Instructions by symbol."""
    if tool is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--print-code", file.name], capture_output=True, text=True)
    if done.returncode:
        return None  # e.g. an architecture that it no longer knows
    found: dict[str, str] = {}
    for section in re.split(r"^\s*//-+ \.text\.", done.stdout, flags=re.M)[1:]:
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);|^(\.L_\S+):", section, flags=re.M)
        found[re.match(r"\w+", section)[0]] = "\n".join(  # type: ignore[index]
            f"{label}:" if label else f"{address} {instruction.strip()}"
            for address, instruction, label in lines
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the machine code of one kernel.")
    parser.add_argument("kernel")
    parser.add_argument("--architecture", type=int, default=80)
    options = parser.parse_args()
    for op in ops():
        if options.kernel in kernel_names(op):
            sys.exit(
                print(
                    next(
                        k for k in kernels(op, options.architecture) if k.name == options.kernel
                    ).sass
                )
            )
    sys.exit(f"no kernel is called {options.kernel}")
