"""Which machine and software this is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

import torch
from common import GPU, Results

TOOLS = ("nvcc", "ninja", "ncu", "compute-sanitizer", "cuobjdump", "nvdisasm")
PACKAGES = (
    "triton",
    "transformers",
    "timm",
    "torchvision",
    "accelerate",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "deformops",
)


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=15).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    asked = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    numbers = output(
        "nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits", "--id=0"
    ).split(", ")
    driver, clock, memory_clock, power = numbers if len(numbers) == 4 else (None,) * 4
    return {
        "name": properties.name,
        "architecture": 10 * properties.major + properties.minor,
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": properties.total_memory / 2**30,
        "driver": driver,
        "clock MHz": clock,
        "memory clock MHz": memory_clock,
        "power limit W": power,
    }


def main() -> None:
    results = Results("facts")
    results["gpu"] = gpu() if GPU else {"name": "cpu"}
    results["system"] = f"{platform.platform()}, {os.cpu_count()} CPUs"
    results["python"] = sys.version.split()[0]
    results["torch"] = (
        f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
    results["packages"] = {name: found for name in PACKAGES if (found := version(name))}
    results["tools"] = [name for name in TOOLS if shutil.which(name)]
    results["nvcc"] = output("nvcc", "--version").splitlines()[-1:] if shutil.which("nvcc") else []
    results["commit"] = output("git", "rev-parse", "HEAD")
    results["changed files"] = output(
        "git", "status", "--porcelain", "--untracked-files=no"
    ).splitlines()


if __name__ == "__main__":
    main()
