"""What test_log.py runs beside a terminal or a file: a run of six iterations, in which others
print, too."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from alignmask import cli
from alignmask.config import DataConfig, ShapesConfig
from alignmask.data import CocoDataset, Sample
from alignmask.training.callbacks import Callback
from alignmask.training.trainer import train
from tests.training.runs import config


class Talker(Callback):
    def on_step(self, trainer: Any, step: int, values: dict[str, Any]) -> None:
        time.sleep(0.15)  # the bar is drawn ten times a second
        print(f"printed after step {step}")
        warnings.warn(f"warned after step {step}", stacklevel=1)


load = CocoDataset.__getitem__


def talk(data: CocoDataset, index: int) -> Sample:
    """Of the training data it is called in a data-loading process."""
    print(f"loaded image {index}", file=sys.stderr)
    return load(data, index)


def main(root: Path) -> None:
    warnings.showwarning = cli._show_warning
    warnings.simplefilter("always", UserWarning)
    CocoDataset.__getitem__ = talk  # type: ignore[method-assign]
    data = DataConfig(
        shapes=ShapesConfig(root / "shapes", 8, 3, 64), crop=64, eval_short_side=64, eval_max_side=64, workers=1
    )  # fmt: skip
    train(config(data, root, log_every=2), callbacks=[Talker()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
