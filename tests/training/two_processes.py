"""What test_distributed.py runs in two processes: `two_processes.py FOLDER` trains, and notes in
FOLDER what each one saw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignmask import ops
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.evaluation.evaluate import Evaluation
from alignmask.training.signals import Stopped
from tests import tiny
from tests.same_points import mask_points
from tests.training.runs import RecordingTrainer, small

random = torch.rand


def same_points_for_all(*shape: Any, device: Any = None) -> Tensor:
    """In place of torch.rand: every image and mask gets the same points, so that it does not matter
    who shares a process."""
    if len(shape) < 3:
        return random(*shape, device=device)
    points = random(*shape[1:], generator=torch.Generator().manual_seed(sum(shape[1:])))
    return points.expand(*shape).clone().to(device)


def settings(root: Path, name: str) -> Config:
    return Config(
        name, root, tiny.model_config(num_classes=6),
        DataConfig(
            shapes=ShapesConfig(root / "shapes", 8, 3, 64), crop=64, eval_short_side=64, eval_max_side=64, workers=0
        ),
        LossConfig(points=64),
        TrainConfig(
            iterations=4, batch_size=4, learning_rate=1e-3, warmup=1, clip=1.0, log_every=1, ema=0.5, max_minutes=1000
        ),
    )  # fmt: skip


class OneOfTwo(RecordingTrainer):
    """The second process alone is asked to stop after the third iteration, and has other BatchNorm
    statistics."""

    def train_step(self, batches: Any) -> Any:
        values = super().train_step(batches)
        self.signals.requested = self.step == 2 and self.accelerator.process_index == 1
        return values

    def evaluate(self) -> Evaluation:
        self.statistics = next(
            b for name, b in self.ema.module.named_buffers() if name.endswith("running_mean")
        )
        self.statistics += self.accelerator.process_index
        return super().evaluate()


def main(root: Path) -> None:
    torch.rand = same_points_for_all
    ops.mask_points = mask_points
    first = OneOfTwo(settings(root, "run"))
    try:
        first.run()
        stopped = False
    except Stopped:
        stopped = True
    second = OneOfTwo(settings(root, "run"))
    second.run()
    steps = first.steps + second.steps
    notes = {
        "stopped": (stopped, first.step, second.step),
        "images": [batch.image_ids for step in steps for batch in step.batches],
        "instances": [batch.counts for step in steps for batch in step.batches],
        "generators": [state for step in steps for state in step.generators],
        "gradients": small(steps[0].gradients),
        "values": [step.values for step in steps],
        "weights": [step.after for step in steps],
        "elapsed": (first.elapsed, second.elapsed),
        "statistics": second.statistics.clone(),
    }
    torch.save(notes, root / f"rank{second.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
