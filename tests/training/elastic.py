"""What test_elastic.py starts with torchrun: `elastic.py FOLDER` trains the run "killed" in two
processes. The second process is killed in the fourth iteration, and after that the first one (which
has the run's lock) in the sixth. FOLDER/began has a line for each start, and there is a file
FOLDER/death_N for each death.
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

VICTIMS = ((3, 1), (5, 0))
"""Step and rank, one after another."""


def settings(root: Path, name: str) -> Config:
    config = two_processes.settings(root, name)
    return replace(config, train=replace(config.train, iterations=6, checkpoint_every=2))


class Mortal(Trainer):
    def train_step(self, batches: Any) -> Any:
        root, here = self.config.out, (self.step, self.accelerator.process_index)
        number = len(list(root.glob("death_*")))
        if VICTIMS[number : number + 1] == (here,):
            (root / f"death_{number}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batches)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    trainer = Mortal(settings(root, "killed"))
    if trainer.accelerator.is_main_process:
        with open(root / "began", "a") as file:
            file.write(f"{trainer.step}\n")
    trainer.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
