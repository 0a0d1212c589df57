"""What can be known about the CUDA kernels without a GPU; the gate behind `make cuda-check`.

1. nvcc compiles and links them, and the module imports where there is no driver.
2. NVRTC compiles every instantiation for every architecture, Volta included, as it would on a
   user's machine.
3. No instantiation uses more registers, shared memory or stack, or has fewer threads on a
   multiprocessor, than bench/ptxas_limits.json allows; in NVRTC's code and, where nvcc is, in its
   own.
4. The instructions that the fast paths are about are there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gpu_code
import nvcc_code
from gpu_code import ARCHITECTURES, REPOSITORY, Kernel

LIMITS = REPOSITORY / "bench" / "ptxas_limits.json"
SHOWN = (70, 80)
IN_CI = "80-real;90"
"""What nvcc compiles for if nobody asks for all: enough to see that it compiles and links."""

IMPORT = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("_core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
build = core.cuda_build()
assert build["architectures"], build
print("built by", build["compiler"], "for", build["architectures"], "| driver:", build["driver"] or "none")

class OnGpu(torch.Tensor):
    device = torch.device("cuda", 0)  # so it says
    __dlpack_c_exchange_api__ = None

ones = torch.ones(3)
loss, logits, label, iou = (x.as_subclass(OnGpu) for x in (ones.clone(), torch.ones(3, 5), ones.long(), ones))
try:
    core.quality_focal_loss_forward(loss, None, logits, label, iou, 2.0, 0.5)
except RuntimeError as error:
    assert str(error).startswith("quality_focal_loss on cuda:0 (C = 5, R = 3): "), error
    print("a call says:", error)
else:
    sys.exit("a call without a GPU went through")
"""


def check_nvcc(everything: bool) -> tuple[list[str], nvcc_code.Resources]:
    """Problems, and what nvcc's code uses."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        print("1. nvcc: skipped, there is none")
        return [], {}
    folder = REPOSITORY / "build" / "cuda-check"
    scripts = Path(sys.executable).parent
    configure = [
        *(
            scripts / "cmake",
            "-S",
            REPOSITORY,
            "-B",
            folder,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={scripts / 'ninja'}",
        ),
        *(f"-DPython_EXECUTABLE={sys.executable}", "-DALIGNMASK_CUDA=ON", "-DALIGNMASK_TESTS=OFF"),
        # The CPU's kernels are needed for linking alone. nvcc optimises device code all the same.
        # (With -O0, GCC 12 has an internal error on vectors of AVX-512.)
        *(
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DCMAKE_CXX_FLAGS_DEBUG=-O1",
            "-DCMAKE_CUDA_FLAGS_DEBUG=-O1 --resource-usage",
        ),
        f"-DCMAKE_CUDA_ARCHITECTURES={'' if everything else IN_CI}",
    ]
    start = time.monotonic()
    for command in (configure, [scripts / "cmake", "--build", folder, "--target", "_core"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [
                f"nvcc: {' '.join(map(str, command))} "
                f"failed:\n{done.stdout[-6000:]}{done.stderr[-6000:]}"
            ], {}
    used = resources_of_the_build(folder / "resources.json", done.stdout)
    (module,) = folder.glob("_core*.so")
    seconds, size = time.monotonic() - start, module.stat().st_size / 2**20
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, module], capture_output=True, text=True, env=hidden
    )
    print(f"1. nvcc: compiled and linked in {seconds:.0f} s, {size:.1f} MiB; {done.stdout.strip()}")
    problems = [f"nvcc: the module does not import:\n{done.stderr}"] if done.returncode else []
    return problems + [
        f"nvcc: {line}" for line in done.stdout.splitlines() if "warning" in line
    ], used


def resources_of_the_build(kept: Path, log: str) -> nvcc_code.Resources:
    """From what was compiled now and, for what was not compiled again, from what was kept."""
    used: nvcc_code.Resources = json.loads(kept.read_text()) if kept.exists() else {}
    used |= nvcc_code.resources(log)
    kept.write_text(json.dumps(used, indent=1))
    return used


def table(kernels: Iterable[Kernel]) -> Iterator[str]:
    """Registers, shared memory in bytes and threads on a multiprocessor, by kernel."""
    by_name: dict[str, dict[int, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    shown = [
        architecture
        for architecture in SHOWN
        if any(architecture in found for found in by_name.values())
    ]
    head = "".join(f"  sm_{architecture}: registers  shared  threads" for architecture in shown)
    yield f"{'kernel':<56}{head}"
    for name, found in by_name.items():
        cells = "".join(
            f"{found[a].registers:>18}{found[a].shared:>8}{100 * found[a].occupancy:>7.0f} %"
            for a in shown
            if a in found
        )
        yield f"{name:<56}{cells}"


def limits_of(kernel: Kernel, limits: dict[str, Any]) -> dict[str, Any]:
    allowed = dict(limits["all"])
    for exception in limits["exceptions"]:
        if (
            re.fullmatch(exception["kernels"], kernel.name)
            and kernel.architecture in exception["architectures"]
        ):
            allowed |= exception["allowed"]
    return allowed | limits["kernels"].get(kernel.name, {})


def check_resources(kernels: Iterable[Kernel], limits: dict[str, Any]) -> list[str]:
    problems, unknown = [], set()
    for kernel in kernels:
        allowed = limits_of(kernel, limits)
        where = f"{kernel.name} on sm_{kernel.architecture}"
        for what in ("registers", "shared", "stack", "spills"):
            value = getattr(kernel, what)
            if what in allowed and value > allowed[what]:
                problems.append(f"{where}: {what} {value}, allowed are {allowed[what]}")
        if kernel.architecture in SHOWN and kernel.occupancy < allowed["occupancy"]:
            problems.append(
                f"{where}: {kernel.occupancy:.0%} of the threads fit, wanted are "
                f"{allowed['occupancy']:.0%}"
            )
        if kernel.name not in limits["kernels"]:
            unknown.add(kernel.name)
    for name in sorted(unknown):
        print(
            f"   {name} has no line in {LIMITS.name} yet: only what holds for all was checked "
            "(--write adds it)"
        )
    return problems


def check_instructions(kernels: Iterable[Kernel], rules: list[dict[str, Any]]) -> list[str]:
    problems, seen = [], {rule["kernels"]: 0 for rule in rules}
    for kernel in kernels:
        for rule in rules:
            if kernel.sass is None or kernel.architecture not in rule["architectures"]:
                continue
            if not re.fullmatch(rule["kernels"], kernel.name):
                continue
            seen[rule["kernels"]] += 1
            faults = [
                f"no {wanted}"
                for wanted in rule.get("with", ())
                if not re.search(wanted, kernel.sass)
            ]
            unwanted = (re.search(pattern, kernel.sass) for pattern in rule.get("without", ()))
            faults += [f"has {found[0]}" for found in unwanted if found]
            problems += [
                f"{kernel.name} on sm_{kernel.architecture}: {fault} ({rule['why']})"
                for fault in faults
            ]
    problems += [
        f"instructions: no kernel is called {name}" for name, count in seen.items() if not count
    ]
    return problems


def written(kernels: Iterable[Kernel], limits: dict[str, Any]) -> dict[str, Any]:
    """Limits at what the kernels use now; registers in the units of 8 in which they are handed
    out."""
    found: dict[str, dict[str, int]] = {}
    for kernel in kernels:
        entry = found.setdefault(kernel.name, {"registers": 0, "shared": 0})
        entry["registers"] = max(entry["registers"], -(-kernel.registers // 8) * 8)
        entry["shared"] = max(entry["shared"], kernel.shared)
    return limits | {"kernels": dict(sorted(found.items()))}


def dump(limits: dict[str, Any]) -> str:
    """As JSON, a line per kernel and rule."""
    parts = [f' "all": {json.dumps(limits["all"])}']
    parts += [
        f' "{key}": [\n' + ",\n".join(f"  {json.dumps(rule)}" for rule in limits[key]) + "\n ]"
        for key in ("exceptions", "nvcc", "instructions")
    ]
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in limits["kernels"].items()
    )
    return "{\n" + ",\n".join([*parts, ' "kernels": {\n' + lines + "\n }"]) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--all", action="store_true", help="let nvcc compile for all architectures of a release"
    )
    parser.add_argument("--no-nvcc", action="store_true")
    parser.add_argument(
        "--write", action="store_true", help="make what the kernels use now the limits"
    )
    options = parser.parse_args()
    problems, used = ([], {}) if options.no_nvcc else check_nvcc(options.all)

    start, limits, possible = time.monotonic(), json.loads(LIMITS.read_text()), []
    for architecture in ARCHITECTURES:
        if reason := gpu_code.available(architecture):
            print(f"   sm_{architecture} is left out: {reason}")
        else:
            possible.append(architecture)
    try:
        kernels = gpu_code.all_kernels(possible) if possible else []
    except RuntimeError as error:
        print(f"FAILED: {error}")
        return 1
    names = " ".join(f"sm_{architecture}" for architecture in possible)
    print(
        f"2. NVRTC: {len(kernels)} instantiations for {names} in {time.monotonic() - start:.0f} s"
    )
    if options.write:
        LIMITS.write_text(dump(limits := written(kernels, limits)))
    problems += check_resources(kernels, limits)
    by_nvcc = nvcc_code.kernels(used, kernels)
    own = limits | {"exceptions": limits["exceptions"] + limits["nvcc"]}
    problems += [f"by nvcc: {problem}" for problem in check_resources(by_nvcc, own)]
    print(
        "3. resources, without any spilled register except where a line says so; threads: of those "
        "that fit"
    )
    print("\n".join(f"   {line}" for line in table(kernels)))
    print(f"   and of nvcc's own code, {len(by_nvcc)} instantiations")
    read = sorted({kernel.architecture for kernel in kernels if kernel.sass is not None})
    if read:
        problems += check_instructions(
            kernels, [r for r in limits["instructions"] if set(r["architectures"]) & set(read)]
        )
        print(
            f"4. instructions: read for {' '.join(f'sm_{architecture}' for architecture in read)}"
        )
    else:
        print("4. instructions: skipped, there is no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"cuda-check: {len(problems)} problems" if problems else "cuda-check: passed")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
