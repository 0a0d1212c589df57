"""With what a run was trained: environment.jsonl, one line for every start of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from alignmask._files import read_json_lines, sha256
from alignmask._version import __version__
from alignmask.config import DataConfig
from alignmask.ops import implementation

ENVIRONMENT = "environment.jsonl"
PACKAGES = (
    "torch", "torchvision", "numpy", "timm", "accelerate", "scipy", "pycocotools", "hotcoco", "pillow",
)  # fmt: skip


def environment(data: DataConfig, device: torch.device) -> dict[str, Any]:
    """Versions, machine, and the SHA-256 of both annotation files. Image files are not read."""
    gpu = device.type == "cuda"
    return {
        "alignmask": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if gpu else _processor(),
        "kernels": implementation("ms_deform_attn", device.type),
        "threads": torch.get_num_threads(),
        "train_annotations": data.train_annotations and sha256(data.train_annotations),
        "val_annotations": data.val_annotations and sha256(data.val_annotations),
    }


def append(run: Path, step: int, values: dict[str, Any]) -> None:
    """Note what a run starts or continues with at an iteration."""
    line = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values}
    with (run / ENVIRONMENT).open("a") as file:
        file.write(json.dumps(line) + "\n")


def starts(run: Path) -> list[dict[str, Any]]:
    """What was noted, oldest first; nothing for runs of older versions."""
    path = run / ENVIRONMENT
    return read_json_lines(path) if path.exists() else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this package is imported from, with a mark if it was changed; None for
    an installed package or without git."""
    # An installed package may lie in a checkout of something else.
    if not _git("ls-files", Path(__file__).name):
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
