"""A few real training steps of a recipe, before hours are spent on it: what they cost, and whether
they fit into memory."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

from alignmask._printing import console
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.training.memory import check_memory, peak_memory, with_batch_size
from alignmask.training.trainer import Trainer


def dry_run(config: Config, steps: int = 3) -> None:
    """Run `steps` training steps as the recipe does, but from random weights. Prints losses,
    seconds, peak memory and an estimate of the whole run.

    First steps with one image and with two are tried. If the recipe's batch would not fit into
    memory, it is not tried. `train.batch_size` auto is found as training does it.

    Nothing is kept. Raises what training would raise, for missing data, classes that disagree, or
    losses that are not finite; and ValueError for a batch that needs more memory than there is,
    with one that does not.
    """
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(without_pretrained(config), name="dry-run", out=Path(folder))
        needed = "" if config.train.batch_size == "auto" else check_memory(config)
        config = with_batch_size(config, resume=False)
        trainer = Trainer(config, resume=False)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        out.print(
            f"{parameters / 1e6:.1f} M parameters, batch {config.train.images_per_step}, crop "
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
