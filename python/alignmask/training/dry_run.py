"""A few real training steps of a recipe, before a cluster is spent on it."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from alignmask.config import Config, without_pretrained
from alignmask.training.log import Log
from alignmask.training.trainer import Trainer


def dry_run(config: Config, steps: int = 3) -> None:
    """Run `steps` training steps exactly as the recipe does, but from random weights; print losses, seconds, peak memory.

    Nothing is kept. Raises what training would raise: missing data, disagreeing classes, losses that are not finite.
    """
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(without_pretrained(config), name="dry-run", out=Path(folder))
        trainer = Trainer(config, resume=False)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        console.print(
            f"{parameters / 1e6:.1f} M parameters, batch {config.train.batch_size}, crop {config.data.crop}, "
            f"{trainer.precision} on {trainer.accelerator.device}"
        )
        with Log(trainer.run_dir, 0, steps, active=False) as trainer.log:
            batches = trainer._batches()
            for step in range(steps):
                before = time.monotonic()
                values = trainer.train_step(batches)
                seconds = time.monotonic() - before
                trainer.step += 1
                parts = "  ".join(f"{name} {value.item():.4g}" for name, value in values.items())
                console.print(f"step {step + 1}: {seconds:.1f} s  {parts}", highlight=False)
    console.print(f"peak memory: {_peak_memory_gib():.1f} GiB")


def _peak_memory_gib() -> float:
    """Of the device if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
