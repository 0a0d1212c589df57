"""Carries out the launches that the core asks for, with kernels that are compiled when they are
first needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from alignmask.ops.jit.cache import Cache, Cubin, fingerprint
from alignmask.ops.jit.nvrtc import Nvrtc

Launch = tuple[str, int, int, bytes]
"""Kernel (its name in C++), blocks, threads in a block, parameters (the kernel's only argument, a
struct)."""


class Driver(Protocol):
    """What the launcher wants from a GPU's driver."""

    def architecture(self, device: int) -> int:
        """90 for sm_90."""

    def load(self, device: int, cubin: Cubin) -> Any:
        """The function in a cubin, on a device."""

    def launch(
        self, device: int, function: Any, blocks: int, threads: int, params: bytes, stream: int
    ) -> None:
        """Enqueue. Raise RuntimeError if the driver refuses."""


class Launcher:
    """Carries out launches; to be given to `alignmask._core.set_launcher`. Safe in several threads.

    Args:
        sources: Folder with the kernels' headers: `<op>/cuda/kernels.cuh` and what they include.
        ops: Names of the folders.
    """

    def __init__(
        self, driver: Driver, nvrtc: Nvrtc, cache: Cache, sources: Path, ops: Sequence[str]
    ) -> None:
        self.driver, self.nvrtc, self.cache, self.sources = driver, nvrtc, cache, sources
        self.ops = sorted(ops, key=len, reverse=True)
        self._functions: dict[tuple[int, str, str], Any] = {}
        self._compiling = threading.Lock()

    def __call__(self, op: str, device: int, stream: int, launches: Sequence[Launch]) -> None:
        for kernel, blocks, threads, params in launches:
            function = self._functions.get((device, op, kernel))
            if function is None:
                function = self._load(op, device, kernel)
            try:
                self.driver.launch(device, function, blocks, threads, params, stream)
            except RuntimeError as error:
                raise RuntimeError(
                    f"launch of {kernel} with {blocks} blocks of {threads} threads failed: {error}"
                ) from error

    def _load(self, op: str, device: int, kernel: str) -> Any:
        with self._compiling:
            key = (device, op, kernel)
            if key not in self._functions:
                cubin = self.cubin(op, kernel, self.driver.architecture(device))
                self._functions[key] = self.driver.load(device, cubin)
            return self._functions[key]

    def cubin(self, op: str, kernel: str, architecture: int) -> Cubin:
        """From the cache, or compiled now. `op`: an op's name, or that of one of its forms, which
        begins with it.

        Raises:
            RuntimeError: NVRTC cannot compile for the architecture, or fails.
        """
        folder = next(name for name in self.ops if op.startswith(name))
        target = self.nvrtc.target(architecture)
        key = fingerprint(self.sources, folder, kernel, target, self.nvrtc.version)
        found = self.cache.read(key)
        if found is None:
            compiled = self.nvrtc.compile(
                f"{folder}/cuda/kernels.cuh", [kernel], target, self.sources
            )
            found = Cubin(compiled.symbols[kernel], compiled.cubin)
            self.cache.write(key, found)
        return found
