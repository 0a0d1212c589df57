"""A step whose loss or gradient is not finite, kept so that it can be repeated: `alignmask replay`.

The folder is a checkpoint of the weights before the step (see `alignmask.checkpoint`), and has the
step's images besides: batch.safetensors (tensors) and batch.json (the rest of each micro-batch).
Statistics of BatchNorm layers that are trained have been updated by the forward pass; they have no
influence on the step.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignmask import checkpoint as checkpoints
from alignmask._files import write_json
from alignmask.config import Config
from alignmask.data import Batch

TENSORS, LISTS = "batch.safetensors", "batch.json"


class NotFinite(FloatingPointError):
    """`number` is the micro-batch of the step whose loss is not finite, or the last one if it is
    the gradient."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def check(losses: Sequence[dict[str, Tensor]], norm: Tensor | None) -> None:
    """Raises NotFinite if the loss of a micro-batch or the norm of the gradient is not finite. The
    host waits for the device, once.

    losses: of each micro-batch, the "loss" and its parts. norm: None if it may be infinite.
    """
    values = [part["loss"] for part in losses] + ([] if norm is None else [norm])
    finite = torch.stack(values).isfinite().tolist()
    for number, part in enumerate(losses):
        if not finite[number]:
            parts = (f"{name} {value.item():.4g}" for name, value in part.items() if name != "loss")
            raise NotFinite(f"loss is not finite ({', '.join(parts)})", number)
    if norm is not None and not finite[-1]:
        raise NotFinite(f"gradient is not finite (norm {norm:g})", len(losses) - 1)


def free_folder(run: Path, step: int, process: int, processes: int) -> Path:
    """Where the step is kept; nothing is overwritten."""
    name = f"non_finite_step_{step}" + (f"_process_{process}" if processes > 1 else "")
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(path for path in map(run.joinpath, names) if not path.exists())


def write(
    folder: Path,
    config: Config,
    weights: dict[str, Tensor],
    state: dict[str, Any],
    meta: dict[str, Any],
    batches: Sequence[Batch],
) -> None:
    checkpoints.save(folder, config, weights, meta, state=state)
    tensors, lists = {}, []
    for number, batch in enumerate(batches):
        rest = {}
        for field in dataclasses.fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                tensors[f"{number}.{field.name}"] = value.cpu().contiguous()
            else:
                rest[field.name] = value
        lists.append(rest)
    save_file(tensors, folder / TENSORS)
    write_json(folder / LISTS, lists)


def read_batches(folder: Path) -> list[Batch]:
    """Raises FileNotFoundError for a folder that is not of such a step."""
    if not (folder / LISTS).is_file() or not (folder / TENSORS).is_file():
        raise FileNotFoundError(
            f"{folder}: not a folder of a step that was not finite (no {LISTS} and {TENSORS} in it)"
        )
    tensors, lists = load_file(folder / TENSORS), json.loads((folder / LISTS).read_text())
    batches = []
    for number, rest in enumerate(lists):
        start = f"{number}."
        own: dict[str, Any] = {
            n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)
        }
        for name in ("sizes", "original_sizes"):
            rest[name] = [tuple(size) for size in rest[name]]
        batches.append(Batch(**own, **rest))
    return batches
