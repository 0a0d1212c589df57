"""Kernels for GPUs without nvcc: the package's sources, compiled by NVRTC for the GPU at hand when
they are first needed.

Four parts: `nvrtc` compiles, `cache` keeps the results on disk, `cupy_driver` loads and launches,
`launcher` joins them. A launch comes from the same C++ code that serves the kernels compiled with
the package; nothing here knows grids or parameters.
"""

from alignmask.ops.jit.launcher import Driver, Launch, Launcher

__all__ = ["Driver", "Launch", "Launcher"]
