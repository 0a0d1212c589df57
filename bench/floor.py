"""The floor under a whole model: the time of its convolutions, matrix products and attention alone.

They are recorded as a call makes them, with shapes and strides, and made again by themselves, on
random numbers, with nothing between them. What is left of a call's time is everything else.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRODUCTS = (
    "convolution", "mm", "bmm", "addmm", "baddbmm", "linear", "matmul", "conv2d", "scaled_dot_product",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A tensor without its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        filled = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        return filled.normal_() if self.dtype.is_floating_point else filled.zero_()


class Recorder(TorchDispatchMode):
    """Counts the products made inside of it, by operator and arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.made: dict[str, Callable[[], Any]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__.lstrip("_")
        if name.startswith(PRODUCTS):
            forms = tree_map(form, (args, kwargs or {}))
            key = f"{func}{forms}"
            self.calls[key] += 1
            self.made.setdefault(key, lambda: again(func, forms))
        return func(*args, **(kwargs or {}))


def form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Form(value.shape, value.stride(), value.dtype)
    return value


def again(func: Callable[..., Any], forms: Any) -> Callable[[], Any]:
    args, kwargs = tree_map(lambda v: v.tensor() if isinstance(v, Form) else v, forms)
    return lambda: func(*args, **kwargs)


def products_of(call: Callable[[], Any]) -> Recorder:
    with Recorder() as recorder:
        call()
    return recorder


@torch.no_grad()
def floor(recorder: Recorder, turns: int = 5) -> float:
    """Seconds of all recorded products: of each the median over `turns`, times how often it was
    made."""
    total = 0.0
    for key, count in recorder.calls.items():
        call, times = recorder.made[key](), []
        for turn in range(turns + 1):
            began = time.perf_counter()
            call()
            if turn:
                times.append(time.perf_counter() - began)
        total += count * statistics.median(times)
    return total
