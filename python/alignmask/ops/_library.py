"""How the ops become torch operators, and which implementation each uses; the only file that knows
torch.library."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad

from alignmask.ops import _backend

try:
    core: Any = importlib.import_module("alignmask._core")
except ImportError as error:
    raise ImportError(
        f"alignmask's compiled module cannot be loaded ({error}): build it with `make setup` or "
        "`pip install .`"
    ) from error

OPS = (
    "ms_deform_attn",
    "masked_point_pool",
    "mask_iou",
    "mask_points",
    "mask_rle",
    "quality_focal_loss",
)

_library = torch.library.Library("alignmask", "DEF")
_gpus = _backend.Gpus(core, OPS)
_kernels: dict[str, tuple[str, ...]] = {}
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
    torch.library.register_fake(f"alignmask::{name}", fake, lib=_library)
    _kernels[name] = tuple(kernels)
    operator: Any = getattr(torch.ops.alignmask, name).default
    differentiable = _differentiable(
        operator, kernels, backward or _no_derivative(name), setup_context
    )
    _library.impl(name, differentiable, "Autograd", with_keyset=True)
    return operator  # type: ignore[no-any-return]


def _differentiable(
    operator: Any,
    kernels: dict[str, Callable[..., Any]],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> Callable[..., Any]:
    """What the dispatcher calls for autograd: as torch.library.register_autograd's, which takes
    twice as long.

    Most calls are on plain tensors, for which the dispatcher would go to one of the kernels next:
    they go there at once. Modes, transforms and subclasses of tensors have keys that come before
    those of the kernels.
    """
    direct = {getattr(_C.DispatchKey, device.upper()): kernel for device, kernel in kernels.items()}

    def below_autograd(keyset: Any, args: Sequence[Any]) -> Any:
        with _C._AutoDispatchBelowAutograd():
            below = keyset & _C._after_autograd_keyset
            kernel = direct.get(below.highestPriorityTypeId())
            return kernel(*args) if kernel else operator.redispatch(below, *args)

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, keyset = args
        output = below_autograd(keyset, inputs)
        if setup_context:
            setup_context(ctx, inputs, output)
        return output

    methods = {
        "forward": staticmethod(forward),
        "backward": staticmethod(lambda *given: (*backward(*given), None)),
    }
    function: Any = type(operator._opname, (torch.autograd.Function,), methods)

    def differentiable(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args
        ):
            return function.apply(*args, keyset)
        return below_autograd(keyset, args)

    return differentiable


def implementation(op: str, device_type: str) -> str:
    """Name what runs `op` on tensors of `device_type` ("cpu", "cuda", ...).

    Returns:
        "kernel (...)" for a kernel of ours, "shapes only" for meta tensors, else "reference" (plain
        torch), perhaps with the reason.

    Raises:
        ValueError: `op` is none of `OPS`.
    """
    if (
        device_type == "cuda"
        and _known(op) not in _forced_reference
        and "cuda" in _kernels.get(op, ())
    ):
        texts = {way.text for way in _gpus.ways()}
        return " or ".join(sorted(texts)) if texts else "reference (no GPU)"
    if device_type == "cuda" or not has_kernel(op, torch.device(device_type)):
        return "reference"
    return {"cpu": f"kernel ({core.cpu_instruction_set()})", "meta": "shapes only"}[device_type]


def gpu_build() -> dict[str, Any]:
    """What was compiled with the package for GPUs: `architectures` as CMake lists them (empty:
    nothing), else `why_not`; `compiler`; and the CUDA versions of the `runtime` inside and of the
    machine's `driver` (13010 is 13.1, 0 is none)."""
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
    devices, kind = _kernels.get(op, ()), device.type
    if kind == "cuda":
        return kind in devices and _gpu_usable(device.index)
    return kind in devices or (kind == "meta" and bool(devices))


@torch.compiler.assume_constant_result
def _gpu_usable(index: int) -> bool:
    return _gpus.usable(index)


def refuse_tangents(op: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError if a forward-mode derivative is asked for: torch would answer with
    0.

    torch makes no such check for operators of torch.library.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{op}: no forward-mode derivative; alignmask.ops.use_reference() has one"
        )


def stream(tensor: Tensor) -> int:
    """Where torch works on the device of `tensor` at present, for a kernel to go there, too."""
    return _C._cuda_getCurrentRawStream(tensor.get_device()) if tensor.is_cuda else 0


def workspace(like: Tensor) -> Callable[[int], Tensor]:
    """Lends a kernel as many bytes as it asks for, on the device of `like`."""
    return lambda size: torch.empty(size, dtype=torch.uint8, device=like.device)


@contextmanager
def use_reference(*ops: str) -> Iterator[None]:
    """Run the named ops (all, if none is named) on their plain torch reference inside the `with`
    block.

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
