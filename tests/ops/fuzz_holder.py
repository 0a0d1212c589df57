"""Where the fuzzer of the bindings keeps tensors: in memory whose other bytes are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.ops import fuzz_junk
from tests.ops.fuzz_junk import Rng, pick

BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "bool": 1,
}


class Holder:
    """Memory with a tensor somewhere inside, whose other bytes a call must leave alone."""

    def __init__(
        self, rng: Rng, shape: list[int], dtype: str, fill: Callable[[Any], None] | None
    ) -> None:
        """`fill`: sets a NumPy view of the tensor; None: an output, of which only the surroundings
        are compared."""
        steps = [pick(rng, 1, 1, 1, 2, 3) for _ in shape]
        order = rng.permutation(len(shape)) if rng.random() < 0.3 else np.arange(len(shape))
        room = [shape[i] * steps[i] + int(rng.integers(2)) for i in order]
        size = BYTES[dtype]
        self.bytes = rng.integers(
            0, 256, (int(np.prod(room, dtype=object)) + 16) * size, dtype=np.uint8
        )
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        if dtype == "bool":
            self.bytes &= 1
        holder = self.bytes[8 * size : len(self.bytes) - 8 * size].view(kind).reshape(room)
        view = holder.transpose(np.argsort(order))
        view = view[tuple(slice(0, s * step, step) for s, step in zip(shape, steps, strict=True))]
        if rng.random() < 0.2:
            view = view[tuple(slice(None, None, pick(rng, 1, -1)) for _ in shape)]
        self.view, self.is_output = view, fill is None
        if fill is not None and dtype == "bfloat16":
            wide = np.empty(shape, np.float32)
            fill(wide)
            view[...] = wide.view(np.uint32) >> 16
        elif fill is not None:
            fill(view)
        self.tensor: Any = view
        if dtype == "bfloat16" or (
            rng.random() < 0.4 and all(stride >= 0 for stride in view.strides)
        ):
            if any(stride < 0 for stride in view.strides):
                self.view = view = view[
                    tuple(slice(None, None, -1 if s < 0 else 1) for s in view.strides)
                ]
            self.tensor = torch.from_numpy(view)
            if dtype == "bfloat16":
                self.tensor = self.tensor.view(torch.bfloat16)
        if rng.random() < 0.1:
            self.tensor = fuzz_junk.Exporter(self.tensor)
        self.before = self.bytes.copy()

    def is_intact(self, written: bool) -> bool:
        """Have only outputs been written, and those only if `written`?"""
        if self.is_output and written:
            kept = self.bytes.copy()
            self.bytes[...] = 0
            self.view[...] = self.view + 1  # now the view's own bytes differ from zero
            own = self.bytes != 0
            self.bytes[...] = 255
            self.view[...] = 0
            own |= self.bytes != 255
            return bool((own | (kept == self.before)).all())
        return bool((self.bytes == self.before).all())
