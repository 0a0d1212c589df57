"""What nvcc's own code of the kernels uses, by what it says while it compiles: NVRTC's of the same
sources may differ."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import replace

import gpu_code
from gpu_code import Kernel

Resources = dict[str, dict[str, int]]
""""kernel on sm_90" -> registers, shared, stack, spills."""


def resources(log: str) -> Resources:
    """Of all kernels that a build compiled with --resource-usage."""
    found: Resources = {}
    for part in re.split(r"(?=Compiling entry function ')", log)[1:]:
        about = re.match(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", part)
        if about:
            (used,) = gpu_code.resources(part).values()
            found[f"{about[1]} on sm_{about[2]}"] = used
    names = _demangled([key.split()[0] for key in found])
    return {
        key.replace(symbol := key.split()[0], names[symbol]): used for key, used in found.items()
    }


def kernels(used: Resources, known: Iterable[Kernel]) -> list[Kernel]:
    """The kernels that NVRTC compiled, with the resources of nvcc's code where there is such."""
    mine = ((kernel, used.get(f"{kernel.name} on sm_{kernel.architecture}")) for kernel in known)
    return [replace(kernel, **numbers) for kernel, numbers in mine if numbers]


def _demangled(symbols: list[str]) -> dict[str, str]:
    """Names as core/*/cuda/kernels.cuh has them: without namespaces and parameters."""
    done = (
        subprocess.run(["c++filt", *symbols], capture_output=True, text=True, check=True)
        if symbols
        else None
    )
    lines = done.stdout.splitlines() if done else []
    plain = (
        re.sub(r"alignmask::|^void |\(alignmask::.*", "", line).split("(")[0] for line in lines
    )
    return dict(zip(symbols, plain, strict=True))
