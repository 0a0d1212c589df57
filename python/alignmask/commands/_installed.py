"""What is installed and what runs where. Needs torch and NumPy alone."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from alignmask import ops
from alignmask._version import __version__


def describe() -> str:
    """The whole text."""
    rows = [
        ("alignmask", f"{__version__} in {Path(__file__).parents[1]}"),
        ("extra [train]", _extra()),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__} ({_torch_cuda()}), numpy {_version('numpy')}"),
        ("variables", _variables()),
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("CUDA kernels", _compiled_kernels()),
        *(("GPU", text) for text in _gpus()),
    ]
    devices = ("cpu", "cuda")
    table = [
        ("op", *devices),
        *((op, *(ops.implementation(op, device) for device in devices)) for op in ops.OPS),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{name:<14} {text}" for name, text in rows]
    lines += [
        "",
        *(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ),
    ]
    return "\n".join(lines)


def _extra() -> str:
    try:
        from alignmask._extras import require_train

        require_train("it")
    except ImportError as error:
        return str(error)
    names = ("torchvision", "timm", "accelerate", "pycocotools", "hotcoco")
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _variables() -> str:
    """Those of the environment that change what runs."""
    names = [
        name
        for name in sorted(os.environ)
        if name.startswith(("ALIGNMASK_", "OMP_", "CUDA_VISIBLE_DEVICES"))
    ]
    return ", ".join(f"{name}={os.environ[name]}" for name in names) or "none that matter"


def _torch_cuda() -> str:
    return f"built with CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"


def _compiled_kernels() -> str:
    """What this build brings along for GPUs."""
    build = ops.gpu_build()
    if not build["architectures"]:
        return f"not built: {build['why_not']}"
    driver = (
        f"driver for CUDA {build['driver'] // 1000}.{build['driver'] % 1000 // 10}"
        if build["driver"]
        else "no device"
    )
    return f"built, {driver} ({build['compiler']}: {build['architectures']})"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["none that torch can use"]
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(
            f"{index}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        )
    return found
