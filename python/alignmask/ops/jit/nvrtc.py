"""NVIDIA's run-time compiler, through ctypes: it needs neither a GPU nor a driver. torch with CUDA
brings it along."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

OPTIONS = ("--std=c++17",)


@dataclass(frozen=True)
class Compiled:
    """Of one architecture: the machine code of all kernels, PTX, the kernels' names in them, and
    the compiler's messages."""

    cubin: bytes
    ptx: bytes
    symbols: dict[str, str]
    log: str


class Nvrtc:
    """One NVRTC library.

    Raises:
        OSError: The library cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        # NVRTC opens this companion by its bare name, which finds it only if it is loaded already.
        for builtins in (
            sorted(Path(path).parent.glob("libnvrtc-builtins.so.*")) if "/" in path else ()
        ):
            ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self._lock = threading.Lock()

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    @cached_property
    def architectures(self) -> tuple[int, ...]:
        """70 for sm_70, ..., ascending."""
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", found)
        return tuple(sorted(found))

    def target(self, architecture: int) -> int:
        """What to compile for, if code shall run on `architecture`: it, or the newest before it of
        the same major version.

        Raises:
            RuntimeError: There is none.
        """
        fitting = [
            known
            for known in self.architectures
            if known <= architecture and known // 10 == architecture // 10
        ]
        if not fitting:
            raise RuntimeError(
                f"NVRTC {self.version[0]}.{self.version[1]} cannot compile for sm_{architecture}: "
                "it knows "
                f"sm_{self.architectures[0]} to sm_{self.architectures[-1]}"
                + (
                    "; a Volta GPU needs torch built for CUDA 12"
                    if architecture < self.architectures[0]
                    else ""
                )
            )
        return fitting[-1]

    def compile(
        self,
        header: str,
        kernels: Sequence[str],
        architecture: int,
        sources: Path,
        options: Sequence[str] = (),
    ) -> Compiled:
        """Compile kernels, given by their names in C++ (instantiations of templates), of `header`
        in the folder `sources`.

        Raises:
            RuntimeError: With the compiler's messages.
        """
        text = f'#include "{header}"\nusing namespace alignmask;\n'.encode()
        program = ctypes.c_void_p()
        with self._lock:
            self._call("CreateProgram", ctypes.byref(program), text, b"kernels.cu", 0, None, None)
            try:
                for kernel in kernels:
                    self._call("AddNameExpression", program, kernel.encode())
                all_options = [
                    f"--gpu-architecture=sm_{architecture}",
                    f"--include-path={sources}",
                    *OPTIONS,
                    *options,
                ]
                array = (ctypes.c_char_p * len(all_options))(
                    *(option.encode() for option in all_options)
                )
                failed = self._library.nvrtcCompileProgram(program, len(all_options), array)
                log = self._get(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                if failed:
                    raise RuntimeError(
                        f"NVRTC cannot compile {header} for sm_{architecture}:\n{log}"
                    )
                symbols = {kernel: self._symbol(program, kernel) for kernel in kernels}
                return Compiled(
                    self._get(program, "CUBIN"),
                    self._get(program, "PTX").rstrip(b"\0"),
                    symbols,
                    log,
                )
            finally:
                self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _symbol(self, program: ctypes.c_void_p, kernel: str) -> str:
        name = ctypes.c_char_p()
        self._call("GetLoweredName", program, kernel.encode(), ctypes.byref(name))
        return (name.value or b"").decode()

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, f"nvrtc{name}")(*arguments)
        if result:
            raise RuntimeError(f"nvrtc{name}: {self._library.nvrtcGetErrorString(result).decode()}")


def find(major: int) -> Nvrtc | None:
    """NVRTC of a major CUDA version: that of NVIDIA's Python packages, which torch depends on, else
    the system's."""
    for path in (
        *_in_packages(major),
        f"libnvrtc.so.{major}",
        f"/usr/local/cuda/lib64/libnvrtc.so.{major}",
    ):
        try:
            return Nvrtc(path)
        except OSError:
            continue  # not there: the next place
    return None


def _in_packages(major: int) -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for folder in (f"cu{major}", "cuda_nvrtc"):
            path = Path(root) / folder / "lib" / f"libnvrtc.so.{major}"
            if path.exists():
                yield str(path)
