"""A few real training steps of a recipe, before a cluster is spent on it."""

from __future__ import annotations

import resource
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from alignmask._printing import console
from alignmask.config import Config, without_pretrained
from alignmask.training.trainer import Trainer


def dry_run(config: Config, steps: int = 3) -> None:
    """Run `steps` training steps as the recipe does, but from random weights. Prints losses,
    seconds and peak memory.

    Nothing is kept. Raises what training would raise: for missing data, classes that disagree,
    losses that are not finite.
    """
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(without_pretrained(config), name="dry-run", out=Path(folder))
        trainer = Trainer(config, resume=False)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        out.print(
            f"{parameters / 1e6:.1f} M parameters, batch {config.train.batch_size}, crop "
            f"{config.data.crop}, "
            f"{trainer.precision} on {trainer.accelerator.device}"
        )
        before = 0.0
        for values in islice(trainer.iterations(), steps):
            seconds, before = trainer.elapsed - before, trainer.elapsed
            parts = "  ".join(f"{name} {value.item():.4g}" for name, value in values.items())
            out.print(f"step {trainer.step}: {seconds:.1f} s  {parts}")
    out.print(f"peak memory: {_peak_memory_gib():.1f} GiB")


def _peak_memory_gib() -> float:
    """Of the GPU if there is one, otherwise of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
