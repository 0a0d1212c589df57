"""Which way the ops take to a GPU: kernels compiled with the package, kernels compiled on first
use, or plain torch.

`ALIGNMASK_CUDA` in the environment forces one: `aot` (compiled with the package), `jit` (compiled
on first use), `off` (plain torch). Without it, or with `auto`: the first of these that works on the
device.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WISHES = ("auto", "aot", "jit", "off")
OLDEST = 70
"""Architecture that knows __grid_constant__ parameters."""


@dataclass(frozen=True)
class Way:
    """`name`: aot, jit or off; `problem`: why what the user forced does not work; `text`: for
    people."""

    name: str
    text: str
    problem: str = ""


def choose(wish: str, aot_problem: str, jit_problem: str) -> Way:
    """The way for one device. The problems say why a way is closed; empty: it is open."""
    if wish == "off":
        return Way("off", "reference (ALIGNMASK_CUDA=off)")
    open_ways = {"aot": aot_problem, "jit": jit_problem}
    texts = {"aot": "kernel (compiled with the package)", "jit": "kernel (compiled on first use)"}
    if wish != "auto":
        return Way(
            wish,
            texts[wish] if not open_ways[wish] else f"error: {open_ways[wish]}",
            open_ways[wish],
        )
    for name, problem in open_ways.items():
        if not problem:
            return Way(name, texts[name])
    return Way("off", f"reference ({aot_problem}; {jit_problem})")


def wish(environment: Mapping[str, str] = os.environ) -> str:
    """Raises ValueError for anything that `ALIGNMASK_CUDA` must not be."""
    text = environment.get("ALIGNMASK_CUDA", "").lower() or "auto"
    text = {"on": "auto"}.get(text, text)  # the build's word, which may still be in the environment
    if text not in WISHES:
        raise ValueError(
            f"ALIGNMASK_CUDA={environment['ALIGNMASK_CUDA']}: expected one of {', '.join(WISHES)}"
        )
    return text


def aot_problem(build: Mapping[str, Any], architecture: int) -> str:
    """Why the kernels in this build do not run on a GPU of an architecture (90 for sm_90)."""
    if not build["architectures"]:
        return f"no kernels compiled with the package: {build['why_not']}"
    if not any(_runs(code, architecture) for code in build["architectures"].split()):
        return f"none compiled for sm_{architecture}, only {build['architectures']}"
    if build["driver"] // 1000 < build["runtime"] // 1000:
        return f"compiled with CUDA {_version(build['runtime'])}, but the driver can do CUDA {_version(build['driver'])} only"
    return ""


def _runs(code: str, architecture: int) -> bool:
    """Does code that CMake calls "90-real", "90-virtual" or "90" (both) run there?"""
    number, _, kind = code.partition("-")
    compiled = int(number.rstrip("af"))
    same = compiled // 10 == architecture // 10 and compiled <= architecture
    return (kind != "virtual" and same) or (kind != "real" and compiled <= architecture)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def jit_problem(architecture: int) -> str:
    """Why kernels cannot be compiled here for a GPU of an architecture."""
    from alignmask.ops.jit import nvrtc

    if torch.version.cuda is None:
        return "torch was built without CUDA"
    major = int(torch.version.cuda.split(".")[0])
    if architecture < OLDEST:
        return f"the kernels need sm_{OLDEST} or newer, this is sm_{architecture}"
    if major not in (12, 13):
        return f"torch was built with CUDA {major}, kernels are compiled with 12 or 13"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: pip install '.[cuda{major}]' in AlignMask's folder"
    library = nvrtc.find(major)
    if library is None:
        return f"there is no NVRTC of CUDA {major}: pip install nvidia-cuda-nvrtc{'-cu12' if major == 12 else ''}"
    try:
        library.target(architecture)
    except RuntimeError as error:
        return str(error)
    return ""


def jit_launcher(core: Any, ops: tuple[str, ...]) -> Callable[..., None]:
    """Raises ImportError if CuPy cannot be used."""
    from alignmask.ops.jit import cache, nvrtc
    from alignmask.ops.jit.cupy_driver import CupyDriver
    from alignmask.ops.jit.launcher import Launcher

    assert torch.version.cuda is not None
    library = nvrtc.find(int(torch.version.cuda.split(".")[0]))
    assert library is not None
    return Launcher(CupyDriver(), library, cache.Cache(cache.default_folder()), sources(core), ops)


def sources(core: Any) -> Path:
    """The kernels' headers, which are installed beside the compiled module."""
    return Path(core.__file__).parent / "kernels"


class Gpus:
    """The ways of all GPUs that this process sees, found out when first asked.

    Args:
        core: The compiled module.
        ops: Names of all ops.
    """

    def __init__(self, core: Any, ops: tuple[str, ...]) -> None:
        self._core, self._ops = core, ops
        self._ways: list[Way] | None = None

    def ways(self) -> list[Way]:
        """One per device; those that compile on first use are ready to do so."""
        if self._ways is None:
            wished, build, ways = wish(), self._core.cuda_build(), []
            for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
                major, minor = torch.cuda.get_device_capability(device)
                architecture = 10 * major + minor
                ways.append(
                    choose(wished, aot_problem(build, architecture), jit_problem(architecture))
                )
            if any(way.name == "jit" and not way.problem for way in ways):
                launcher = jit_launcher(self._core, self._ops)
                for device, way in enumerate(ways):
                    if way.name == "jit":
                        self._core.set_launcher(device, launcher)
            self._ways = ways
        return self._ways

    def usable(self, device: int) -> bool:
        """Do kernels run on this GPU?

        Raises:
            RuntimeError: The way that `ALIGNMASK_CUDA` forces does not work on it.
        """
        ways = self.ways()
        if device >= len(ways):  # a fake tensor's, on a machine without it
            return False
        way = ways[device]
        if way.problem:
            raise RuntimeError(
                f"ALIGNMASK_CUDA={way.name} does not work on cuda:{device}: {way.problem}"
            )
        return way.name != "off"
