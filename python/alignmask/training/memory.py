"""How much memory a training step needs, and the batches that fit, by a few real steps."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
import torch

from alignmask import checkpoint as checkpoints
from alignmask._printing import console, counted
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.training.optimizer import learning_rate
from alignmask.training.trainer import Trainer

SPARE = 0.9
"""Share of the free memory that may be used: the estimate is of two steps, and images differ."""


def check_memory(config: Config) -> str:
    """What the recipe's batch needs, in words. Raises ValueError if there is not enough."""
    accumulate, batch_size = config.train.accumulate, config.train.images_per_step
    together = batch_size // accumulate  # Trainer refuses what leaves a remainder
    if together < 3 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ""
    trainer = Trainer(_with_images(config, 1), resume=False)
    limit = _limit()
    one = _peak_of_steps(trainer)
    del trainer
    two = _peak_of_steps(Trainer(_with_images(config, 2), resume=False))

    def estimate(images: int) -> float:
        return one + (images - 1) * max(0, two - one)

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


def with_batch_size(config: Config, resume: bool) -> Config:
    """The config with a number for `train.batch_size`. For auto it is that of the run which is
    continued, or the largest that fits into memory, which is printed.

    Raises ValueError if not even one image fits, and for several processes.
    """
    run, t = config.out / config.name, config.train
    if t.batch_size != "auto":
        return config
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "train.batch_size: auto is for one process; try it with one, and give several the "
            "number times their count"
        )
    if resume and checkpoints.latest(run) is not None:
        size = checkpoints.load_config(run).train.images_per_step
        return replace(config, train=replace(t, batch_size=size))
    most, peak, limit = _most_images(config)
    t = replace(t, batch_size=most * t.accumulate)
    rate = f"the learning rate is {learning_rate(t):g}"
    if t.scale_learning_rate_from is None:
        rate += ", as for any other batch (--train.scale-learning-rate-from scales it)"
    console().print(
        f"train.batch_size auto: {t.batch_size}. {counted(most, 'image')} at a time took "
        f"{peak / 2**30:.1f} GiB of {limit / 2**30:.1f}; {rate}"
    )
    return replace(config, train=t)


def _most_images(config: Config) -> tuple[int, int, float]:
    """The largest number of images at a time that fits into memory, at most all there are; the peak
    of its memory, and the limit.

    The number is at most doubled from try to try, and chosen by what an image took in the try
    before. A number of images has therefore been tried before it is returned.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = replace(without_pretrained(config), name="batch-size", out=Path(folder))
        trainer = Trainer(_with_images(config, 1), resume=False)
        limit, most = _limit(), len(trainer.train_data)
        images, peak, growth = 1, _peak_of_steps(trainer), 0.0
        del trainer
        if peak > limit:
            raise ValueError(
                f"train.batch_size auto: one image takes {peak / 2**30:.1f} GiB, and "
                f"{limit / 2**30:.1f} GiB are to be had here: reduce --data.crop, or the model"
            )
        while True:
            room = (limit - peak) / growth if growth else math.inf
            more = int(min(2 * images, most, images + room))
            if more == images:
                return images, peak, limit
            found = _try(_with_images(config, more))
            if found > limit:
                most = (images + more) // 2
            else:
                growth = max(0.0, (found - peak) / (more - images))
                images, peak = more, int(found)


def _try(config: Config) -> float:
    """The peak of a config's steps; infinite if the GPU's memory is too small."""
    try:
        return _peak_of_steps(Trainer(config, resume=False))
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _with_images(config: Config, images: int) -> Config:
    """The recipe with so many images a step."""
    return replace(config, train=replace(config.train, batch_size=images, accumulate=1))


def _limit() -> float:
    """Bytes that this process may have: what it has, and most of what is free."""
    own, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    if torch.cuda.is_available():
        own, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    return own + SPARE * free


def _peak_of_steps(trainer: Trainer) -> int:
    """Of two steps: the optimizer's state is in memory from the first one's end on."""
    with peak_memory() as peak:
        for _ in islice(trainer.iterations(), 2):
            pass
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
