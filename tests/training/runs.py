"""Tiny runs, and what tests note of them in order to compute it again by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import Config, DataConfig, LossConfig, TrainConfig
from alignmask.data import Batch
from alignmask.evaluation.evaluate import Evaluation
from alignmask.training.callbacks import Callback
from alignmask.training.trainer import Trainer
from tests import tiny

TRAIN = TrainConfig(
    iterations=6, batch_size=2, learning_rate=1e-3, warmup=2, clip=1.0, evaluate_every=100, checkpoint_every=3, log_every=2
)  # fmt: skip


def config(shapes: DataConfig, out: Path, name: str = "run", **changes: Any) -> Config:
    """`changes` are of the section `train`."""
    model = tiny.model_config(num_classes=6)
    return Config(name, out, model, shapes, LossConfig(points=32), replace(TRAIN, **changes))


def unlike_config(shapes: DataConfig, out: Path) -> Config:
    """No number is the default, and no two are equal where one could be taken for the other."""
    loss = LossConfig(
        points=32, class_weight=3.0, mask_weight=7.0, dice_weight=2.0, aligned_weight=0.4
    )
    train = TrainConfig(
        iterations=8, batch_size=4, accumulate=2, learning_rate=3e-3, backbone_multiplier=0.25, weight_decay=0.3,
        milestones=(0.25, 0.75), warmup=3, clip=2.5, ema=0.5, seed=7, evaluate_every=5, checkpoint_every=6, log_every=3,
        keep_checkpoints=1,
    )  # fmt: skip
    return replace(config(shapes, out), loss=loss, train=train)


def weights(run: Path) -> dict[str, Tensor]:
    return checkpoint.load_weights(checkpoint.latest(run), ema=False)


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def lines(run: Path, kind: str = "loss") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with losses, or (`kind="eval"`) those with evaluations."""
    return [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if kind in line
    ]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    expected = {name: value.to(found[name].dtype) for name, value in expected.items()}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def small(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the largest convolutions of the backbone, which take most of the time and have
    nothing of their own."""
    return {name: tensor for name, tensor in tensors.items() if tensor.numel() < 50_000}


def copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def moving_average(history: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The average of the weights after each iteration. Its decay rises to `decay` as timm's
    ModelEmaV3 says: 0 in the first two iterations, then 1 - (1 + n) ** (-2/3) with n = 1, 2, 3,
    ..."""
    average = {name: value.double() for name, value in history[0].items()}
    for n, values in enumerate(history[1:]):
        keep = min(decay, 1 - (1 + n) ** (-2 / 3))
        average = {
            name: keep * average[name] + (1 - keep) * value.double()
            for name, value in values.items()
        }
    return average


@dataclass
class Step:
    """One iteration. The dictionaries go by the names of parameters (and, for the weights, of
    buffers)."""

    before: dict[str, Tensor]
    after: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """What the optimizer was given; parameters without a gradient are missing."""
    rates: dict[str, float] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    """One for every micro-batch, like the next."""
    points: list[Tensor | None] = field(default_factory=list)
    """Where aligned queries were pooled, if that was drawn before the model was called."""
    generators: list[Tensor] = field(default_factory=list)
    """State of torch's generator when the model was called: it decides on all random points."""
    values: dict[str, float] = field(default_factory=dict)


class RecordingTrainer(Trainer):
    """Notes what each iteration starts from, hands to the optimizer, and ends with."""

    def __init__(
        self, config: Config, resume: bool = True, callbacks: Sequence[Callback] = ()
    ) -> None:
        super().__init__(config, resume, callbacks)
        self.steps: list[Step] = []
        self.saved: list[int] = []
        self.evaluated: list[int] = []
        self.kept: list[str] = []
        """Names of the checkpoints that were there after the last was written."""
        self.plain = self.accelerator.unwrap_model(self.model)
        self.plain.register_forward_pre_hook(self._note_batch)
        self.optimizer.optimizer.register_step_pre_hook(self._note_gradients)

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        self.steps.append(Step(copy(self.plain.state_dict())))
        values = super().train_step(batches)
        self.steps[-1].after = copy(self.plain.state_dict())
        self.steps[-1].values = {name: float(value) for name, value in values.items()}
        return values

    def save(self) -> None:
        super().save()
        self.saved.append(self.step)
        self.kept = sorted(folder.name for folder in (self.run_dir / "checkpoints").iterdir())

    def evaluate(self) -> Evaluation:
        self.evaluated.append(self.step)
        return super().evaluate()

    def _note_batch(self, _: object, arguments: tuple[Batch, Tensor | None]) -> None:
        if self.plain.training:
            self.steps[-1].batches.append(arguments[0])
            self.steps[-1].points.append(arguments[1])
            self.steps[-1].generators.append(torch.get_rng_state())

    def _note_gradients(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        names = {id(parameter): name for name, parameter in self.plain.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.steps[-1].rates[names[id(parameter)]] = group["lr"]
                if parameter.grad is not None:
                    self.steps[-1].gradients[names[id(parameter)]] = parameter.grad.clone()
