"""What the fuzzer of the bindings passes instead of arguments that fit: junk, spoilt tensors,
exporters that lie."""

from __future__ import annotations

import array
import ctypes
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator

HUGE = (2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**44, 2**60, 2**62, 2**63 - 1)


def pick(rng: Rng, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def limit_memory() -> None:
    """Keeps calls of huge sizes from filling the machine: beyond 6 GiB more, allocations fail. (Not
    under a sanitizer, whose shadow is larger than that: it has an option of its own.)
    """
    try:
        import resource
    except ImportError:
        return
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
    if used < 2**40:
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30,) * 2)


class Exporter:
    """Speaks DLPack, and nothing else."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)


class OldExporter(Exporter):
    def __dlpack__(self) -> Any:
        return self.tensor.__dlpack__()


class SameCapsule:
    """Hands out one capsule again and again."""

    def __init__(self, tensor: Any) -> None:
        self.capsule = tensor.__dlpack__()

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


class Liar:
    """Looks like a tensor, and raises or returns nonsense whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __dlpack__(self, **_: Any) -> Any:
        return self.give()

    def give(self, *_: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    data_ptr = stride = __index__ = __float__ = __getitem__ = __iter__ = __len__ = give
    dtype, shape, device = torch.float32, (2, 2), torch.device("cpu")


class TensorLike:
    """What torch's tensors have, over memory that nobody owns."""

    dtype, shape, device, is_cuda = torch.float32, (2, 3, 1, 4), torch.device("cpu"), False
    __dlpack_c_exchange_api__ = "none"

    def data_ptr(self) -> int:
        return 0xDEADBEEF0

    def stride(self) -> tuple[int, ...]:
        return (12, 4, 4, 1)


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = (
    ctypes.py_object,
    (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
)
CAPSULES = [
    new_capsule(1, name, None)
    for name in (b"used_dltensor", b"dltensor2", b"used_dltensor_versioned", None)
]


def junk(rng: Rng) -> Any:
    """No tensor at all, or an object that pretends."""
    return pick(
        rng, None, None, 0, -1, 2**31, 2**63, 2**200, -(2**63), 1.5, float("nan"), 1j, True, "text", "f", b"bytes", "\ud800",
        [], [1, 2], (1, 2), [None], {}, {"a": 1}, set(), object(), object, print, slice(2), range(5), iter([1]), Ellipsis,
        [[1.0, 2.0]], np.float32(1), np.int64(2), np.array("text"), np.array(None), np.datetime64("2026-01-01"),
        np.zeros(3, "datetime64[s]"), np.zeros(3, "f4,i4"), np.zeros((2, 2), object), np.ma.zeros((2, 2)), np.zeros((), "V"),
        memoryview(b"abcd"), bytearray(8), array.array("f", [1, 2]), array.array("u", "ab"), (ctypes.c_float * 3)(),
        ctypes.c_double(1), Exporter(np.zeros(3, ">f4")), Exporter(None), Exporter(1), TensorLike(), TensorLike, torch.Tensor,
        torch.float32, torch.zeros(2, 2, device="meta"), torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(),
        torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.float8_e4m3fn), torch.nn.Parameter(torch.zeros(2)),
        torch.zeros(3).untyped_storage(), torch.zeros(4, dtype=torch.uint16),
        *(Liar(answer) for answer in (None, 1, "text", (), CAPSULES[0], *CAPSULES)),
        *(Liar(error) for error in (TypeError("no"), ValueError("no"), BufferError("no"), KeyError(1), MemoryError(),
        OSError())),
        *CAPSULES,
    )  # fmt: skip


def expanded(one: Any, shape: list[int]) -> Any:
    """`one` (of a single element) in every place of a shape of any size."""
    try:
        return np.lib.stride_tricks.as_strided(one, shape, [0] * len(shape))
    except (ValueError, OverflowError):  # larger than NumPy allows
        return one


def resized(rng: Rng, x: Any) -> Any:
    """With one size changed."""
    if x.ndim == 0:
        return x
    axis = int(rng.integers(x.ndim))
    if x.shape[axis] == 0:
        return np.zeros([*x.shape[:axis], 1, *x.shape[axis + 1 :]], x.dtype)
    if rng.random() < 0.3:
        shape = list(x.shape)
        shape[axis] = pick(rng, *HUGE)
        strides = list(x.strides)
        strides[axis] = 0
        try:
            return np.lib.stride_tricks.as_strided(x, shape, strides)
        except (ValueError, OverflowError):
            return x
    return np.take(x, range(int(rng.integers(x.shape[axis] + 2))), axis, mode="clip")


def swapped(x: Any) -> Any:
    return x.astype(x.dtype.newbyteorder()) if x.dtype.kind in "fiu" else x


def unaligned(x: Any) -> Any:
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    return raw.view(x.dtype).reshape(x.shape)


def read_only(x: Any) -> Any:
    view = x.view()
    view.flags.writeable = False
    return view


def odd_strides(rng: Rng, x: Any) -> Any:
    """Steps that are no multiple of the element size, or zero, inside memory that is there."""
    raw = np.zeros(x.nbytes * 2 + 16, np.uint8)
    strides = [pick(rng, 0, stride, stride + 1) for stride in x.strides]
    if any(stride < 0 for stride in strides) or sum(
        (size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)
    ) + x.itemsize > len(raw):
        return x
    return np.ndarray(x.shape, x.dtype, raw, 0, strides)


def spoilt(rng: Rng, x: Any) -> Any:
    """A tensor with something wrong, or unusual, about it."""
    if isinstance(x, torch.Tensor):
        return spoilt_torch(rng, x)
    if x.size > 2**20:  # one of huge size: not to be copied
        return x
    change = pick(
        rng, swapped, unaligned, read_only, SameCapsule, OldExporter, Exporter, np.ndarray.tolist, np.ma.masked_array,
        lambda a: resized(rng, a), lambda a: resized(rng, a), lambda a: odd_strides(rng, a), lambda a: a[None],
        lambda a: a[(None,) * 5],
        lambda a: a[(None,) * 20], lambda a: a.reshape(-1), lambda a: a.T, lambda a: a[(slice(None, None, -1),) * a.ndim],
        lambda a: a.astype(pick(rng, "f8", "f4", "f2", "i8", "i4", "u1", "?", "c8", "O", "S3", "g", "i2", "u8")),
        lambda a: memoryview(a), lambda a: np.asfortranarray(a), lambda a: np.broadcast_to(a, a.shape),
        lambda a: Exporter(torch.from_numpy(a.copy())), lambda a: Exporter(read_only(a)),
        lambda a: a.view(np.matrix) if a.ndim == 2 else a,
        lambda a: a * np.array(np.nan, "f4") if a.dtype.kind == "f" else a,
    )  # fmt: skip
    try:
        with np.errstate(all="ignore"):
            return change(x)
    except (ValueError, TypeError, BufferError, MemoryError):  # what NumPy itself does not make
        return x


def spoilt_torch(rng: Rng, x: torch.Tensor) -> Any:
    if isinstance(x, Unprintable):
        return x
    change = pick(
        rng, torch.Tensor.to_sparse, lambda a: a.to("meta"), lambda a: a.requires_grad_(), lambda a: a.T, lambda a: a[None],
        lambda a: a.float(), lambda a: a.double(), lambda a: a.long(), lambda a: a.to(torch.complex64),
        lambda a: a.to(torch.float8_e5m2),
        lambda a: a.to(torch.uint16), lambda a: a.expand(3, *a.shape), lambda a: a[..., :0], lambda a: a.flatten(),
        lambda a: torch.quantize_per_tensor(a.float(), 0.1, 0, torch.quint8), lambda a: a.to(torch.complex64).conj().imag,
        lambda a: torch._to_functional_tensor(a), lambda a: a.to_mkldnn(), lambda a: torch.nested.nested_tensor([a, a]),
        lambda a: emptied(a.clone()), lambda a: Exporter(a), lambda a: SameCapsule(a), lambda a: OldExporter(a),
        lambda a: a.tolist(),
    )  # fmt: skip
    try:
        return change(x)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        BufferError,
        AttributeError,
        NotImplementedError,
    ):  # what torch does not make
        return x


class Unprintable(torch.Tensor):
    def __repr__(self) -> str:  # type: ignore[override]
        return "tensor(...)"


def emptied(x: torch.Tensor) -> torch.Tensor:
    """Its memory is gone."""
    x.untyped_storage().resize_(0)
    return x.as_subclass(Unprintable)  # torch's own __repr__ would read that memory


def part_of(rng: Rng, memory: Any, like: Any) -> Any:
    """`like`'s shape and dtype over another array's memory, as far as that reaches."""
    if not isinstance(like, np.ndarray) or memory.size == 0 or like.itemsize == 0:
        return memory
    base = memory
    while isinstance(base.base, np.ndarray):
        base = base.base
    if not base.flags.c_contiguous or base.dtype.hasobject or like.dtype.hasobject:
        return memory
    raw = base.reshape(-1).view(np.uint8)
    start = int(rng.integers(0, 3)) * like.itemsize
    steps = pick(rng, 1, 1, 2, 3)
    room = raw[start : start + (len(raw) - start) // like.itemsize * like.itemsize].view(
        like.dtype
    )[::steps]
    return room[: like.size].reshape(like.shape) if room.size >= like.size else memory


def spoilt_list(rng: Rng, sizes: list[int]) -> Any:
    """Another list of level sizes."""
    other: list[Any] = list(sizes)
    change = int(rng.integers(8))
    if change < 3 and other:
        other[rng.integers(len(other))] = pick(
            rng, *HUGE, -1, 0, -(2**63), 2**64, None, 1.5, "2", np.int8(2), Liar(3), True
        )
    elif change == 3:
        other = other[:-1]
    elif change == 4:
        other += [1, 1]
    elif change == 5:
        return tuple(other)
    elif change == 6:
        return np.array(
            [size if isinstance(size, int) and abs(size) < 100 else 1 for size in other],
            pick(rng, "i8", "i4", "f4"),
        )
    else:
        other = other * 70_000 if len(other) < 100 else other
    return other
