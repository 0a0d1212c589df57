"""The package that is tested: a wheel that was carried here, the one at hand, or one built now.
Nothing is fetched.

`prepare` fills the folder of what is carried, on a machine with a package registry and nvcc.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
STORE = PROJECT / "build" / "gpu_report" / "carried"
EXTRAS = (
    "tyro",
    "docstring-parser",
    "typeguard",
    "dacite",
    "pycocotools",
    "hotcoco",
    "deformops",
    "ninja",
)
"""What a machine with torch, timm and transformers may lack: some of [train], and peers. None of it
is needed."""
CHECK = """
import sys
from alignmask import ops
found = {op: ops.implementation(op, sys.argv[1]) for op in ops.OPS}
print(ops.__file__, found)
sys.exit(not all(text.startswith("kernel") for text in found.values()))
"""


def fingerprint() -> str:
    """Of all that a wheel is made of."""
    folders = ("core", "bindings", "cmake", "python")
    files = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.is_file()]
    kept = [
        *sorted(p for p in files if p.suffix not in (".pyc", ".so")),
        PROJECT / "CMakeLists.txt",
    ]
    contents = (f"{path.relative_to(PROJECT)}\n".encode() + path.read_bytes() for path in kept)
    return hashlib.sha256(b"".join(contents)).hexdigest()


def pip(python: str, *arguments: str | Path, **environment: str) -> bool:
    command = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        *map(str, arguments),
    ]
    return subprocess.run(command, env=os.environ | environment).returncode == 0


def works(device: str) -> bool:
    """Can a package be imported whose kernels run on the device? The check runs outside the
    checkout, whose folders could be imported by mistake."""
    return subprocess.run([sys.executable, "-c", CHECK, device], cwd="/").returncode == 0


def into(site: Path, *what: str | Path, **environment: str) -> bool:
    options = (
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--no-cache-dir",
        "--upgrade",
        "--target",
        site,
    )
    return pip(sys.executable, "install", *options, *what, **environment)


def install(site: Path, device: str) -> int:
    wheels = sorted(STORE.glob("*.whl"))
    for wheel in wheels:
        if not wheel.name.startswith("alignmask-") and not into(site, wheel):
            print(f"{wheel.name} was skipped: it cannot be installed here")
    mine = [wheel for wheel in wheels if wheel.name.startswith("alignmask-")]
    known = STORE / "sources.txt"
    if mine and not (known.exists() and known.read_text() == fingerprint()):
        print(
            "the wheel in build/gpu_report/carried was skipped: the sources have changed since it "
            "was built"
        )
    elif mine and into(site, mine[0]) and works(device):
        print(f"the carried wheel {mine[0].name} is used")
        return 0
    for stale in (*site.glob("alignmask"), *site.glob("alignmask-*")):
        shutil.rmtree(stale)
    if works(device):
        print("the package at hand is used")
        return 0
    print("no package with kernels for this device is at hand: building one")
    # In a folder of its own: a build folder that travelled here names another machine's compiler.
    folder = f"build-dir={site.parent / 'build'}"
    processors = str(os.cpu_count() or 1)
    options = ("--no-build-isolation", "-C", folder, PROJECT)
    built = into(site, *options, CMAKE_BUILD_PARALLEL_LEVEL=processors, ALIGNMASK_CUDA="AUTO")
    return 0 if built and works(device) else 1


def prepare(python: str, architectures: str) -> int:
    """Fill the folder of what is carried: wheels for `python`'s version, the counted model, and
    what they were made of."""
    STORE.mkdir(parents=True, exist_ok=True)
    for old in STORE.iterdir():
        old.unlink()
    done = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
    )
    version = done.stdout.strip()
    if not version:
        print(f"{python} does not start: name a Python with --python")
        return 1
    platforms = [
        f"--platform={name}"
        for name in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    ]
    which = (
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={version}",
        *platforms,
    )
    for extra in EXTRAS:
        if not pip(sys.executable, "download", "--quiet", *which, "-d", STORE, extra):
            print(
                f"{extra} will be missing on the other machine: no wheel for Python {version} was "
                "found"
            )
    tools = STORE.parent / f"tools-{version}"
    if not (tools / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", tools], check=True)
        if not pip(
            str(tools / "bin/python"),
            "install",
            "-q",
            "scikit-build-core>=0.10",
            "pybind11>=2.13",
            "cmake",
            "ninja",
        ):
            return 1
    options = (
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-C",
        f"build-dir={tools / 'build'}",
        "-w",
        STORE,
    )
    path = f"{tools / 'bin'}:{os.environ['PATH']}"
    cmake = f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"
    if not pip(
        str(tools / "bin/python"),
        "wheel",
        *options,
        PROJECT,
        ALIGNMASK_CUDA="ON",
        CMAKE_ARGS=cmake,
        PATH=path,
    ):
        print(
            "no wheel of ours is carried, since none can be built here; the machine with the GPU "
            "will build one"
        )
    (STORE / "sources.txt").write_text(fingerprint())
    environment = os.environ | {
        "GPU_REPORT_DEVICE": "cpu",
        "GPU_REPORT_WORK": str(STORE.parent / "prepared"),
    }
    program, architecture = PROJECT / "bench" / "gpu" / "expected.py", architectures.split("-")[0]
    if subprocess.run([sys.executable, program, architecture], env=environment).returncode == 0:
        shutil.copy(STORE.parent / "prepared" / "results" / "expected.json", STORE)
    size = sum(path.stat().st_size for path in STORE.iterdir()) / 2**20
    print(
        f"{STORE.relative_to(PROJECT)}: {size:.0f} MiB: "
        + ", ".join(sorted(path.name for path in STORE.iterdir()))
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("install", "prepare"))
    parser.add_argument("--site", type=Path, help="install: where to")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--python", default="python3.12", help="prepare: of the version on the machine with the GPU"
    )
    parser.add_argument(
        "--architectures", default="90-real", help="prepare: of its GPU, as CMake calls them"
    )
    chosen = parser.parse_args()
    sys.exit(
        install(chosen.site, chosen.device)
        if chosen.what == "install"
        else prepare(chosen.python, chosen.architectures)
    )
