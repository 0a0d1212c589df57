"""How often the host waits for the device in a training step, counted without a device.

What comes from the batch, from a parameter or from either is marked as being on the device. An
operator on it that a GPU's host would wait for is noted: a value read, a copy to the host, a shape
that depends on the numbers. So is a copy to the device that is not asynchronous.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from alignmask.config import DataConfig
from alignmask.training.trainer import Trainer
from tests.training.runs import config

NEEDS_NO_GPU = True

READS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__format__", "nonzero", "argwhere",
    "masked_select", "unique", "bincount", "equal", "allclose",
}  # fmt: skip
INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_", "masked_scatter"}


class HostWaits(TorchFunctionMode):
    """The names of what was waited for, in order, are in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        name = getattr(function, "__name__", "")
        given = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        there = any(on_device(x) for x in given)
        to_host = name == "cpu" or (name == "to" and "cpu" in arguments[1:])
        to_device = name == "to" and not to_host and bool(given) and not there
        result = function(*arguments, **options)
        if to_host or to_device:
            result = result.clone()  # here both are the same memory
        if to_device and not options.get("non_blocking"):
            self.found.append("to the device")
        reads = to_host or name in READS or self._counts(name, arguments)
        if there and reads and not options.get("non_blocking"):
            self.found.append(name)
        if (there or to_device) and not to_host:
            mark(result)
        return result

    def _counts(self, name: str, arguments: Any) -> bool:
        """Is something selected by a mask, so that the result's size depends on it?"""
        indices = tree_leaves(arguments[1]) if name in INDEXING else []
        return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)


def on_device(tensor: Tensor) -> bool:
    return getattr(tensor, "there", False) or isinstance(tensor, torch.nn.Parameter)


def mark(values: Any) -> None:
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            value.there = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_waits_twice(shapes: DataConfig, tmp_path: Path, accumulate: int) -> None:
    """For the costs of the matching (with accumulation: of every micro-batch), and to see that all
    is finite before the weights change."""
    trainer = Trainer(config(shapes, tmp_path, iterations=2, accumulate=accumulate))
    for buffer in trainer.model.buffers():
        mark(buffer)
    batches = trainer.batches()
    trainer.train_step(batches)  # the optimizer's state is made
    with HostWaits() as waits:
        values = trainer.train_step(batches)
    assert waits.found == ["cpu"] * accumulate + ["tolist"]
    assert all(on_device(value) for value in values.values())


def test_what_is_waited_for_is_seen() -> None:
    x = torch.arange(4.0)
    mark(x)
    host = torch.ones(4)
    with HostWaits() as waits:
        assert x.sum() > 1
        x[x > 2]
        x[host > 2] = 0
        (x * 2).nonzero()
        host.nonzero()
        host.to(torch.device("cpu"))
        y = host.to(torch.device("cpu"), non_blocking=True) + host
        y.to("cpu", non_blocking=True).tolist()
        y.cpu().tolist()
        float(y[0])
    assert waits.found == [
        "__bool__",
        "__getitem__",
        "__setitem__",
        "nonzero",
        "to the device",
        "cpu",
        "__float__",
    ]
