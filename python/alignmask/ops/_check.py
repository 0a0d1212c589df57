"""Argument checks shared by the ops: what is wrong, in which op and argument, expected against
given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MASKS = (torch.bool, torch.uint8)
INTS = (torch.int64, torch.int32)
# The usual first: asking Sequence takes ten times as long.
_PAIR, _SIZE = (tuple, list, Sequence), (int, torch.SymInt)


def tensors(op: str, **arguments: Tensor) -> None:
    """Check that the arguments are tensors.

    Raises:
        TypeError: With the name of the one that is not.
    """
    for name, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")


def pairs(op: str, name: str, values: Sequence[tuple[int, int]]) -> None:
    """Check that an argument is a sequence of pairs of ints.

    Raises:
        TypeError: With the first entry that is not.
    """
    if not isinstance(values, _PAIR):
        raise TypeError(
            f"{op}: {name} must be a sequence of pairs of ints (h, w), got {type(values).__name__}"
        )
    for index, pair in enumerate(values):
        if not (
            isinstance(pair, _PAIR)
            and len(pair) == 2
            and isinstance(pair[0], _SIZE)
            and isinstance(pair[1], _SIZE)
        ):
            raise TypeError(f"{op}: {name}[{index}] must be a pair of ints (h, w), got {pair!r}")


def bind(op: str, **arguments: tuple[Tensor, str, tuple[torch.dtype, ...]]) -> dict[str, int]:
    """Check type, dtype, rank, device and sizes of an op's tensors; return the size behind every
    letter.

    Args:
        op: Name of the op, for messages.
        arguments: name -> (tensor, one letter or digit per dimension, allowed dtypes). A letter
            must have one size in all tensors; a digit is that size itself.

    Raises:
        TypeError: Not a tensor, or a dtype that is not allowed.
        ValueError: Wrong rank, size or device.
    """
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    device: torch.device | None = None
    for name, (tensor, letters, dtypes) in arguments.items():
        tensors(op, **{name: tensor})
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(
                f"{op}: {name} must be of dtype {allowed}, got "
                f"{str(tensor.dtype).removeprefix('torch.')}"
            )
        if tensor.dim() != len(letters):
            raise ValueError(
                f"{op}: {name} must have the {len(letters)} dimensions {letters}, got "
                f"{_shape(tensor)}"
            )
        if device is None:
            device, first = tensor.device, name
        elif tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but {first} is on {device}")
        for letter, size in zip(letters, tensor.shape, strict=True):
            if letter.isdigit():
                if size != int(letter):
                    raise ValueError(
                        f"{op}: {name} ({letters}) must have size {letter} there, got "
                        f"{_shape(tensor)}"
                    )
            elif sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{op}: {name} ({letters}) has {letter} = {size} in {_shape(tensor)}, "
                    f"but {source[letter]} has {letter} = {sizes[letter]}"
                )
            source.setdefault(letter, name)
    return sizes


def in_range(op: str, name: str, tensor: Tensor, low: int, high: int) -> None:
    """Check low <= tensor < high. On the CPU only: elsewhere the check would wait for the device.

    Raises:
        ValueError: With the first offending entry and its index.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    bad = ((tensor < low) | (tensor >= high)).nonzero()
    if len(bad):
        index = int(bad[0, 0])
        raise ValueError(
            f"{op}: {name}[{index}] = {int(tensor[index])} is outside [{low}, {high - 1}]"
        )


def levels(
    op: str, level_shapes: Sequence[tuple[int, int]], tokens: int, count: int, counted: str
) -> None:
    """Check a list of level sizes (h, w) against the number of tokens and of levels; `counted`: the
    argument with L.

    Raises:
        TypeError: Entries that are not pairs of ints.
        ValueError: Negative sizes, a wrong number of levels, or sizes that do not add up to the
            tokens.
    """
    pairs(op, "level_shapes", level_shapes)
    for index, level in enumerate(level_shapes):
        if level[0] < 0 or level[1] < 0:
            raise ValueError(f"{op}: level_shapes[{index}] = {tuple(level)} is negative")
    if len(level_shapes) != count:
        raise ValueError(
            f"{op}: level_shapes lists {len(level_shapes)} levels, but {counted} has L = {count}"
        )
    total = sum(h * w for h, w in level_shapes)
    if total != tokens:
        raise ValueError(
            f"{op}: level_shapes {[tuple(level) for level in level_shapes]} adds up to {total} "
            "tokens, "
            f"but value has S = {tokens}"
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic and accumulation use: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
