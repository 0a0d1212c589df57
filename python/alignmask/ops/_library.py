"""How the ops become torch operators, and which implementation each uses; the only file that knows torch.library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from alignmask.ops import _gpu

try:
    core: Any = importlib.import_module("alignmask._core")
except ImportError as error:
    raise ImportError(
        f"alignmask's compiled module cannot be loaded ({error}): build it with `make setup` or `pip install .`"
    ) from error

OPS = ("ms_deform_attn", "masked_point_pool", "mask_iou", "quality_focal_loss")

_library = torch.library.Library("alignmask", "DEF")
_gpus = _gpu.Gpus(core, OPS)
_kernels: dict[str, frozenset[str]] = {}
_forced_reference: set[str] = set()


def define(
    name: str,
    signature: str,
    *,
    kernels: dict[str, Callable[..., Any]],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register `torch.ops.alignmask.<name>` and return it.

    Args:
        name: Name of the operator.
        signature: Its arguments and results, as in a torch schema.
        kernels: Device type ("cpu", "cuda") -> function that computes the results there.
        fake: Computes results without data, for torch.compile, export and meta tensors.
        backward: Gradient formula; None: differentiating the operator raises NotImplementedError.
        setup_context: Keeps what `backward` needs.
    """
    _library.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    for device, kernel in kernels.items():
        _library.impl(name, kernel, device.upper())
    qualified = f"alignmask::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(
        qualified, backward or _no_derivative(name), setup_context=setup_context, lib=_library
    )
    _kernels[name] = frozenset(kernels)
    operator: Callable[..., Any] = getattr(torch.ops.alignmask, name).default
    return operator


def implementation(op: str, device_type: str) -> str:
    """Name what runs `op` on tensors of `device_type` ("cpu", "cuda", ...).

    Returns:
        "kernel (...)" for a kernel of ours, "shapes only" for meta tensors, else "reference" (plain torch), perhaps with the
        reason.

    Raises:
        ValueError: `op` is none of `OPS`.
    """
    if device_type == "cuda" and _known(op) not in _forced_reference and "cuda" in _kernels.get(op, ()):
        texts = {way.text for way in _gpus.ways()}
        return " or ".join(sorted(texts)) if texts else "reference (no GPU)"
    if device_type == "cuda" or not has_kernel(op, torch.device(device_type)):
        return "reference"
    return {"cpu": f"kernel ({core.cpu_instruction_set()})", "meta": "shapes only"}[device_type]


def gpu_build() -> dict[str, Any]:
    """What was compiled with the package for GPUs: `architectures` as CMake lists them (empty: nothing), else `why_not`;
    `compiler`; and the CUDA versions of the `runtime` inside and of the machine's `driver` (13010 is 13.1, 0 is none)."""
    build: dict[str, Any] = core.cuda_build()
    return build


def has_kernel(op: str, device: torch.device) -> bool:
    """Does `op` run on its operator (else on its reference) for tensors of `device`?

    Raises:
        ValueError: `op` is none of `OPS`.
        RuntimeError: `ALIGNMASK_CUDA` forces kernels on a GPU that do not work there.
    """
    if _known(op) in _forced_reference:
        return False
    devices = _kernels.get(op, frozenset())
    if device.type == "cuda":
        return "cuda" in devices and _gpu_usable(device.index)
    return device.type in devices or (device.type == "meta" and bool(devices))


@torch.compiler.assume_constant_result
def _gpu_usable(index: int) -> bool:
    return _gpus.usable(index)


def refuse_tangents(op: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError if a forward-mode derivative is asked for: torch would answer with 0.

    torch makes no such check for operators of torch.library.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(f"{op}: no forward-mode derivative; alignmask.ops.use_reference() has one")


def stream(tensor: Tensor) -> int:
    """Where torch works on the device of `tensor` at present, for a kernel to go there, too."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def workspace(size: int, like: Tensor) -> Tensor | None:
    """Memory of `size` bytes for one call of a kernel on the device of `like`; None if no bytes are wanted."""
    return torch.empty(size, dtype=torch.uint8, device=like.device) if size else None


@contextmanager
def use_reference(*ops: str) -> Iterator[None]:
    """Run the named ops (all, if none is named) on their plain torch reference inside the `with` block.

    Raises:
        ValueError: A name that is none of `OPS`.
    """
    added = {_known(op) for op in ops or OPS} - _forced_reference
    _forced_reference.update(added)
    try:
        yield
    finally:
        _forced_reference.difference_update(added)


def _known(op: str) -> str:
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}: expected one of {', '.join(OPS)}")
    return op


def _no_derivative(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise NotImplementedError(f"alignmask::{name} has no derivative")

    return backward
