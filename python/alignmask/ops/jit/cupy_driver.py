"""Loads and launches through CuPy: the extra [cuda12] or [cuda13]."""

from __future__ import annotations

import ctypes
from typing import Any

import cupy

from alignmask.ops.jit.cache import Cubin


class CupyDriver:
    """See `alignmask.ops.jit.launcher.Driver`."""

    def architecture(self, device: int) -> int:
        return int(cupy.cuda.Device(device).compute_capability)

    def load(self, device: int, cubin: Cubin) -> Any:
        with cupy.cuda.Device(device):
            module = cupy.cuda.Module()
            module.load(cubin.code)
            return module.get_function(cubin.symbol)  # keeps the module alive

    def launch(
        self, device: int, function: Any, blocks: int, threads: int, params: bytes, stream: int
    ) -> None:
        # The driver reads the parameters before it returns. They are not numbers that CuPy knows
        # how to pass, but a struct, so they go through its binding of cuLaunchKernel: an array of
        # one pointer, to the struct.
        struct = ctypes.create_string_buffer(params, len(params))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(struct))
        with cupy.cuda.Device(device):
            cupy.cuda.driver.launchKernel(
                function.ptr, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0
            )
