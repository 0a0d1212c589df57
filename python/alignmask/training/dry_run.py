"""A few real training steps of a recipe, before hours are spent on it: what they cost, and whether
they fit into memory."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
import torch

from alignmask._printing import console, counted
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.training.trainer import Trainer

SPARE = 0.9
"""Share of the free memory that may be used: the estimate is of two steps, and images differ."""


def dry_run(config: Config, steps: int = 3) -> None:
    """Run `steps` training steps as the recipe does, but from random weights. Prints losses,
    seconds, peak memory and an estimate of the whole run.

    First a step with one image and one with two are tried. If the recipe's batch would not fit into
    memory, it is not tried.

    Nothing is kept. Raises what training would raise, for missing data, classes that disagree, or
    losses that are not finite; and ValueError for a batch that needs more memory than there is,
    with one that does not.
    """
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(without_pretrained(config), name="dry-run", out=Path(folder))
        needed = _check_memory(config)
        trainer = Trainer(config, resume=False)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        out.print(
            f"{parameters / 1e6:.1f} M parameters, batch {config.train.batch_size}, crop "
            f"{config.data.crop}, "
            f"{trainer.precision} on {trainer.accelerator.device}{needed}"
        )
        seconds: list[float] = []
        with peak_memory() as peak:
            for values in islice(trainer.iterations(), steps):
                seconds.append(trainer.elapsed - sum(seconds))
                parts = "  ".join(f"{name} {value.item():.4g}" for name, value in values.items())
                out.print(f"step {trainer.step}: {seconds[-1]:.1f} s  {parts}")
    out.print(f"peak memory: {peak.bytes / 2**30:.1f} GiB")
    out.print(_whole_run(config, seconds))


def _whole_run(config: Config, seconds: list[float]) -> str:
    """How long the run would take, by the steps after the first one, which is slower."""
    t = config.train
    step = statistics.median(seconds[1:] or seconds)
    hours = t.iterations * step / 3600
    if t.max_minutes is not None and hours * 60 > t.max_minutes:
        reached = int(t.max_minutes * 60 / step)
        return (
            f"the whole run: stopped by train.max_minutes after {t.max_minutes:g} minutes, at about "
            f"iteration {reached} of {t.iterations}; evaluations come on top"
        )
    return (
        f"the whole run: about {hours:.1f} hours for {t.iterations} iterations; evaluations come on "
        "top"
    )


def _check_memory(config: Config) -> str:
    """What the recipe's batch needs, in words. Raises ValueError if there is not enough."""
    accumulate, batch_size = config.train.accumulate, config.train.batch_size
    together = batch_size // accumulate  # Trainer refuses what leaves a remainder
    if together < 3 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ""
    trainer = Trainer(_with_images(config, 1), resume=False)
    own, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    if torch.cuda.is_available():
        own, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    one = _peak_of_a_step(trainer)
    del trainer
    two = _peak_of_a_step(Trainer(_with_images(config, 2), resume=False))

    def estimate(images: int) -> float:
        return one + (images - 1) * max(0, two - one)

    limit = own + SPARE * free
    if estimate(together) <= limit:
        return f"; an estimate of the memory is {estimate(together) / 2**30:.1f} GiB"
    text = (
        f"dry run: {together} images at a time need about {estimate(together) / 2**30:.1f} GiB, and "
        f"{limit / 2**30:.1f} GiB are to be had here. "
    )
    smaller = [n for n in range(together, 0, -1) if batch_size % n == 0 and estimate(n) <= limit]
    if not smaller:
        raise ValueError(text + "Even one image does not fit: reduce --data.crop, or the model")
    raise ValueError(
        text + f"The same batch in parts: --train.accumulate {batch_size // smaller[0]} "
        f"({counted(smaller[0], 'image')} at a time, about {estimate(smaller[0]) / 2**30:.1f} GiB)"
    )


def _with_images(config: Config, images: int) -> Config:
    """The recipe with so many images a step."""
    return replace(config, train=replace(config.train, batch_size=images, accumulate=1))


def _peak_of_a_step(trainer: Trainer) -> int:
    with peak_memory() as peak:
        next(trainer.iterations())
    return peak.bytes


@dataclass
class Peak:
    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The greatest memory inside of the block, filled in at its end: allocated on the GPU if there
    is one, otherwise of this process."""
    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss)
