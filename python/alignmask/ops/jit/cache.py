"""Compiled kernels on disk, in one file each. Processes may read and write at the same time: files
appear whole or not at all.

Where: `ALIGNMASK_CACHE`, else `$XDG_CACHE_HOME/alignmask/kernels`, else
`~/.cache/alignmask/kernels`; it may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from alignmask.ops.jit.nvrtc import OPTIONS

_MAGIC = b"alignmask cubin 1\n"


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and the kernel's name in it."""

    symbol: str
    code: bytes


class Cache:
    """In a folder, which is made when it is first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.kernel"

    def read(self, key: str) -> Cubin | None:
        """None if there is no such entry, or one that is damaged."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, rest = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
        if not content.startswith(_MAGIC) or hashlib.sha256(rest).digest() != digest:
            return None
        symbol, _, code = rest.partition(b"\n")
        return Cubin(symbol.decode(), code)

    def write(self, key: str, cubin: Cubin) -> None:
        """Warns, and goes on without, if the folder cannot be written to."""
        rest = cubin.symbol.encode() + b"\n" + cubin.code
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=f".{key[:16]}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(rest).digest() + rest)
                os.replace(name, self.path(key))
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            warnings.warn(
                f"alignmask cannot keep compiled kernels ({error}): every process compiles them "
                "again. "
                "Set ALIGNMASK_CACHE to a folder that can be written to.",
                stacklevel=2,
            )


def default_folder() -> Path:
    if chosen := os.environ.get("ALIGNMASK_CACHE"):
        return Path(chosen)
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignmask" / "kernels"
    )


def fingerprint(
    sources: Path, folder: str, kernel: str, architecture: int, nvrtc: tuple[int, int]
) -> str:
    """Names everything that machine code depends on: the sources, what is compiled, for what and by
    what."""
    parts = [
        _hash(sources, folder),
        kernel,
        f"sm_{architecture}",
        f"NVRTC {nvrtc[0]}.{nvrtc[1]}",
        *OPTIONS,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _hash(sources: Path, folder: str) -> str:
    """Of the headers that an op's kernels can include."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("common", folder) for path in (sources / part).rglob("*")):
        if path.suffix in (".h", ".cuh"):
            digest.update(f"{path.relative_to(sources)}\n{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
