"""Reads pickled tensors without running them.

A pickle is a program for a stack machine, and `pickle.load` lets it call what it likes. This
machine knows the instructions that state dicts need and no others, and calls nothing but the
functions of `CALLS`, which stand in for NumPy's and torch's: they check every declared size against
the bytes that are there. Whatever else a file asks for is an error that says so.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import reprlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor


class CheckpointError(ValueError, pickle.UnpicklingError):
    """A file that is no checkpoint, is damaged, asks for code to be run, or does not fit the
    model."""


class _Brief(reprlib.Repr):
    """Values of a file in a message. A pickle can nest one value in itself so often that to write
    it out in full would fill any memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxtuple = self.maxlist = self.maxdict = 8
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 128 else f"<{value.bit_length()} bits>"

    def repr_instance(self, value: Any, level: int) -> str:
        plain = value is None or isinstance(value, (bool, float, bytes, Global))
        return super().repr_instance(value, level) if plain else f"<{type(value).__name__}>"


brief = _Brief().repr


@dataclass(frozen=True)
class Global:
    """What a pickle names by module and name: either one of `CALLS` or one of `TYPES`."""

    name: str


@dataclass
class Storage:
    """One-dimensional memory that tensors are views of."""

    values: Tensor


class Dictionary(dict):
    """OrderedDict or Counter, without the attributes that may be pickled with it."""


@dataclass
class DataType:
    """numpy.dtype: of plain numbers alone."""

    code: str

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or self.code not in NUMBERS:
            raise CheckpointError(
                f"arrays of dtype {brief(self.code)} are refused: only plain numbers are read"
            )

    def set_state(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise CheckpointError(
                f"arrays of dtype {brief(state)} are refused: only plain numbers are read"
            )
        self.code = ("" if order in "|=" else order) + self.code.lstrip("<>")


NUMBERS = ("b1", "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


@dataclass
class Array:
    """numpy.ndarray; pickles make it empty first and fill it afterwards. values: read-only, in the
    file's byte order."""

    values: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # bytes that Python 2 wrote
            data = data.encode("latin-1")
        self.values = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    if not isinstance(dtype, DataType) or not isinstance(data, (bytes, bytearray)):
        raise CheckpointError("an array's data are not the bytes of plain numbers")
    numbers = np.dtype(dtype.code)
    shape = _sizes(shape)
    declared = math.prod(shape) * numbers.itemsize
    if declared != len(data):
        raise CheckpointError(
            f"an array of shape {shape} declares {declared} bytes, but has {len(data)}"
        )
    return np.frombuffer(data, numbers).reshape(shape, order=order)


def _sizes(sizes: Any) -> tuple[int, ...]:
    if (
        not isinstance(sizes, (tuple, list))
        or len(sizes) > 32
        or not all(type(n) is int and n >= 0 for n in sizes)
    ):
        raise CheckpointError(f"{brief(sizes)} is no shape")
    return tuple(sizes)


# ---- what a pickle may call


def _dictionary(content: Any = ()) -> Dictionary:
    """Of another dictionary, or of pairs."""
    found = Dictionary()
    for key, value in content.items() if isinstance(content, dict) else content:
        found[_key(key)] = value
    return found


def _reconstruct_array(kind: Any, shape: Any, code: Any) -> Array:
    return Array()


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    return Array(_array(data, dtype, shape, "F" if order == "F" else "C"))


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    return _array(data, dtype, (), "C").item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError(f"a text in the encoding {brief(encoding)} is refused")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor without a storage")
    size, stride = _sizes(size), _sizes(stride)
    (offset,) = _sizes((offset,))
    count = storage.values.numel()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (last >= count or math.prod(size) > count):
        raise CheckpointError(
            f"a tensor of shape {size} reaches past its storage of {count} numbers"
        )
    return storage.values.as_strided(size, stride, offset if math.prod(size) else 0)


def _parameter(data: Any, *_: Any) -> Any:
    return data


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "numpy.core.multiarray._reconstruct": _reconstruct_array,
    "numpy._core.multiarray._reconstruct": _reconstruct_array,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "numpy._core.numeric._frombuffer": _array_from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": lambda code, *_: DataType(code),
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,  # how protocol 2 writes b""
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _sizes,
}
"""Every function that a pickle can call; `Reader.load_bytes` is the only other one."""

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
TYPES = ("numpy.ndarray", *STORAGES)
"""What it can name, but not call."""

LOAD_BYTES = "torch.storage._load_from_bytes"

# ---- the machine

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SLACK = 4
"""How many times its own length a file may be copied: old pickles encode their bytes as text, and
tensors may share memory."""
INSTRUCTIONS = 1_000_000
"""As many a pickle may have, or one-byte instructions would fill the memory with small objects. A
large model's checkpoint with its optimizer has 100,000."""


@dataclass
class Reader:
    """Reads one pickle from a file's position on.

    limit: the file's length; its calls may copy a few times as many bytes.
    storage: answers a persistent id, which is how torch's files refer to the memory beside the
        pickle.
    load_bytes: reads a storage that torch has put into the pickle as bytes.
    """

    limit: int
    storage: Callable[[Any], Storage] | None = None
    load_bytes: Callable[[bytes], Storage] | None = None
    copied: int = 0
    """Bytes that calls have copied. The same value can be passed to any number of calls: their sum
    is limited."""

    def read(self, file: BinaryIO) -> Any:
        """The pickled value: basic types, Array and Tensor. Raises CheckpointError."""
        try:
            return self._run(file)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle fails in any way: too few values on the stack, wrong types, ...
            raise CheckpointError(
                f"damaged or truncated: {type(error).__name__}: {error}"
            ) from error

    def _run(self, file: BinaryIO) -> Any:
        stack: list[Any] = []
        marked: list[list[Any]] = []  # the stacks below the marks
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            nonlocal stack
            values, stack = stack, marked.pop()
            return values

        argument: Any
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if count >= INSTRUCTIONS:
                raise CheckpointError(f"refused: it has more than {INSTRUCTIONS} instructions")
            if name in ("PROTO", "FRAME"):
                pass
            elif name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "MARK":
                marked.append(stack)
                stack = []
            elif name == "TUPLE":
                values = since_mark()
                stack.append(tuple(values))
            elif name == "LIST":
                values = since_mark()
                stack.append(values)
            elif name == "DICT":
                values = since_mark()
                stack.append({})
                _items(stack[-1], values)
            elif name == "SETITEMS":
                values = since_mark()
                _items(stack[-1], values)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                _items(stack[-1], [key, value])
            elif name == "APPEND":
                value = stack.pop()
                _expect(stack[-1], list).append(value)
            elif name == "APPENDS":
                values = since_mark()
                _expect(stack[-1], list).extend(values)
            elif name == "ADDITEMS":
                values = since_mark()
                _expect(stack[-1], set).update(map(_key, values))
            elif name == "POP":
                stack.pop()
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(self._global(*argument.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._global(module, attribute))
            elif name == "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], (Array, DataType)):
                    stack[-1].set_state(state)
                else:
                    _expect(stack[-1], Dictionary)
            elif name == "BINPERSID" and self.storage is not None:
                stack.append(self.storage(stack.pop()))
            elif name == "STOP":
                return stack.pop()
            else:
                raise CheckpointError(
                    f"refused: it uses the instruction {name}, which tensors do not need"
                )
        raise CheckpointError("damaged or truncated: it does not end")

    def _global(self, module: Any, name: Any) -> Global:
        full = f"{_expect(module, str)}.{_expect(name, str)}"
        if (
            full not in CALLS
            and full not in TYPES
            and not (full == LOAD_BYTES and self.load_bytes is not None)
        ):
            raise CheckpointError(
                f"refused: it asks for {full}. Only tensors, NumPy arrays of numbers and basic "
                "types are read; "
                "nothing of the file was run"
            )
        return Global(full)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = _expect(function, Global).name
        for argument in _expect(arguments, tuple):
            if (
                isinstance(argument, (str, bytes, bytearray, list, tuple, dict))
                and len(argument) > 64
            ):
                self.copied += len(argument) * (
                    1 if isinstance(argument, (str, bytes, bytearray)) else 100
                )
        if self.copied > SLACK * self.limit:
            raise CheckpointError(
                f"refused: it copies more than {SLACK} times the file's {self.limit} bytes"
            )
        if name == LOAD_BYTES and self.load_bytes is not None:
            return self.load_bytes(_expect(arguments[0], bytes))
        if name not in CALLS:
            raise CheckpointError(f"refused: it calls the type {name}")
        return CALLS[name](*arguments)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise CheckpointError(f"damaged: {kind.__name__} expected, got {type(value).__name__}")
    return value


def _items(target: Any, values: list[Any]) -> None:
    keys = map(_key, values[::2])
    _expect(target, dict).update(zip(keys, values[1::2], strict=True))


def _key(value: Any) -> Any:
    """Of a dictionary or a set: plain values, and tuples of these. To hash a tuple that is nested
    in itself again and again takes forever, and so do many integers of one hash."""
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, (str, bytes, int, float, type(None))) or (
            isinstance(part, int) and abs(part) >= sys.hash_info.modulus
        ):
            raise CheckpointError(f"refused: {brief(value)} as a key")
    return value
