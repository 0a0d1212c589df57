"""Experiment trackers, by way of Accelerate: TensorBoard, Weights & Biases, MLflow and others."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    TensorBoardTracker,
    filter_trackers,
    get_available_trackers,
)
from PIL import Image

from alignmask.config import Config
from alignmask.config_files import config_to_dict

PROJECT = "alignmask"
"""The project or experiment in which trackers list the runs."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises ValueError for a tracker that Accelerate does not know, and ImportError for one whose
    package is missing."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"train.trackers: no tracker {name!r}; expected some of {known}")
        if name not in map(str, get_available_trackers()):
            package = name.replace("_", "-")
            raise ImportError(
                f"train.trackers: {name} is not installed: `pip install {package}`, or leave it "
                "out of --train.trackers"
            )


class Trackers:
    """The trackers of a run, open from the first call on. For the main process alone."""

    def __init__(
        self, accelerator: Accelerator, config: Config, run: Path, first_step: int
    ) -> None:
        names = config.train.trackers
        # TensorBoard forgets what a continued run will repeat.
        board = TensorBoardTracker("tensorboard", run, purge_step=first_step + 1)
        accelerator.trackers = []
        accelerator.log_with = filter_trackers(
            [board if name == board.name else name for name in names], str(run)
        )
        about: dict[str, dict[str, Any]] = {
            "mlflow": {"run_name": config.name},
            "wandb": {"name": config.name, "dir": str(run), "id": "", "resume": "allow"},
        }
        if "wandb" in names:
            about["wandb"]["id"] = _identity(run)
        accelerator.init_trackers(
            PROJECT, init_kwargs={name: about[name] for name in names if name in about}
        )
        self.trackers = accelerator.trackers
        for tracker in self.trackers:
            if tracker is not board:  # it would make a folder for them, each time
                tracker.store_init_configuration(flat(config_to_dict(config)))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(_named(values) if tracker.name == "mlflow" else values, step=step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        """Trackers that take no pictures are left out."""
        image_HWC = np.asarray(Image.open(file).convert("RGB"))
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({tag: image_HWC[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "mlflow":
                tracker.log_artifact(str(file), f"{tag}/{step:07d}")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({tag: [image_HWC]}, step=step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def _identity(run: Path) -> str:
    """What marks a continued run as the same one; a run that starts anew has a folder without
    it."""
    file = run / "tracker_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    return file.read_text()


def _named(values: dict[str, float]) -> dict[str, float]:
    """Names that MLflow accepts."""
    return {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of names with dots; lists as text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, (str, int, float)) or value is None
            found[prefix + name] = value if plain else str(value)
    return found
