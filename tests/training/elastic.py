"""What test_elastic.py starts with torchrun: `elastic.py FOLDER` trains the run "killed" in two
processes. The first time, the second process is killed in the fourth iteration; the second time,
the first one (which has the run's lock) in the sixth. The third time nobody is.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alignmask.config import Config
from alignmask.training.trainer import Trainer
from tests.training import two_processes

VICTIMS = {"0": (3, 1), "1": (5, 0)}
"""Number of restarts -> step and rank."""


def settings(root: Path, name: str) -> Config:
    config = two_processes.settings(root, name)
    return replace(config, train=replace(config.train, iterations=6, checkpoint_every=2))


class Mortal(Trainer):
    def train_step(self, batches: Any) -> Any:
        here = self.step, self.accelerator.process_index
        if VICTIMS.get(os.environ["TORCHELASTIC_RESTART_COUNT"]) == here:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batches)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    trainer = Mortal(settings(root, "killed"))
    restarts, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], trainer.accelerator.process_index
    (root / f"began_{restarts}_{rank}").write_text(str(trainer.step))
    trainer.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
