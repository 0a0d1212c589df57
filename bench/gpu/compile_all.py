"""Compiles all kernels by NVRTC into the cache, side by side: what first use would do one after the
other.

`compile_all.py ARCHITECTURE [COUNT]`: 90 for sm_90; only so many.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import Results, skip


def jobs() -> list[tuple[str, str]]:
    """(op, kernel), as the headers that are installed list them."""
    from alignmask import _core
    from alignmask.ops import _backend

    found = []
    for path in sorted(Path(_backend.sources(_core)).glob("*/cuda/kernels.cuh")):
        names = re.findall(r"\bX\((\w+<.*?>|\w+)\)", path.read_text())
        found += [(path.parent.parent.name, re.sub(r",\s*", ", ", name)) for name in names]
    return found


def compile_one(job: tuple[str, str], architecture: int) -> tuple[str, float, str]:
    """(kernel, seconds, error)."""
    import torch

    from alignmask import _core
    from alignmask.ops import OPS, _backend
    from alignmask.ops.jit import cache, nvrtc
    from alignmask.ops.jit.launcher import Launcher

    op, kernel = job
    library = nvrtc.find(int((torch.version.cuda or "0").split(".")[0]))
    assert library is not None
    launcher = Launcher(
        None, library, cache.Cache(cache.default_folder()), _backend.sources(_core), OPS
    )  # type: ignore[arg-type]
    start = time.perf_counter()
    try:
        launcher.cubin(op, kernel, architecture)
    except Exception as error:
        return kernel, 0.0, str(error)[:300]
    return kernel, time.perf_counter() - start, ""


def main() -> int:
    import torch

    from alignmask.ops.jit import nvrtc

    if torch.version.cuda is None or nvrtc.find(int(torch.version.cuda.split(".")[0])) is None:
        skip("there is no NVRTC: torch has no CUDA here")
    results, architecture = Results("jit_compile"), int(sys.argv[1])
    chosen = jobs()[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
    start = time.perf_counter()
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        done = list(pool.map(functools.partial(compile_one, architecture=architecture), chosen))
    longest = max(done, key=lambda job: job[1])
    results["kernels"] = len(done)
    results["seconds"] = time.perf_counter() - start
    results["longest"] = {longest[0]: longest[1]}
    results["failed"] = {kernel: error for kernel, _, error in done if error}
    return bool(results.found["failed"])


if __name__ == "__main__":
    sys.exit(main())
