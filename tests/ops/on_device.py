"""Calls of the compiled module carried out on another device, so that the suite, whose tensors are
on the CPU, tests that one's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOOKED_AT = ("_forward", "_backward", "_workspace")


class OnDevice:
    """The compiled module, but kernels run on `device`.

    Every storage is copied there once and back afterwards: strides, offsets and overlaps of the
    tensors in it stay as they are.
    """

    def __init__(self, core: Any, device: str) -> None:
        self._core, self._device = core, device

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._core, name)
        if not name.endswith(LOOKED_AT):
            return function

        def call(*arguments: Any, **options: Any) -> Any:
            copies: dict[int, tuple[Tensor, Tensor]] = {}
            moved = {key: self._moved(option, copies) for key, option in options.items()}
            result = function(*(self._moved(argument, copies) for argument in arguments), **moved)
            for here, there in copies.values():
                here.copy_(there)
            return result

        return call

    def _moved(self, argument: Any, copies: dict[int, tuple[Tensor, Tensor]]) -> Any:
        if callable(argument):  # lends workspace
            return lambda size: argument(size).to(self._device)
        if not isinstance(argument, Tensor) or argument.device.type != "cpu":
            return argument
        storage = argument.untyped_storage()
        if storage.data_ptr() not in copies:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            copies[storage.data_ptr()] = here, here.to(self._device, copy=True)
        there = copies[storage.data_ptr()][1].untyped_storage()
        empty = torch.empty(0, dtype=argument.dtype, device=self._device)
        return empty.set_(there, argument.storage_offset(), argument.shape, argument.stride())
