"""What an iteration does, computed again by hand: batch, losses, gradient, clipping, AdamW, moving
average, log."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import DataConfig
from alignmask.data import TrainingStream, resolve_paths, train_dataset
from alignmask.loss import Criterion
from alignmask.training import checks
from alignmask.training.trainer import Trainer, seed_of
from tests import tiny
from tests.covers import covers
from tests.loss.oracle import by_name
from tests.training.runs import (
    RecordingTrainer,
    Step,
    assert_close,
    assert_equal,
    config,
    lines,
    moving_average,
    small,
)

# Of the tiny model: parameters that belong to norms, and those that are embeddings.
NOT_DECAYED = re.compile(
    r"norm\.(weight|bias)$|project\.\d\.1\.|(lateral|fuse)\.1\.|level_embedding$|^query_decoder\.query(_position)?$"
)
# Logged name -> weight in the total, of `unlike_config`.
LOSS_WEIGHTS = {
    "classification": 3.0, "mask": 7.0, "dice": 2.0,
    "aligned_classification": 0.4 * 3.0, "aligned_mask": 0.4 * 7.0, "aligned_dice": 0.4 * 2.0,
}  # fmt: skip


@covers("train.seed")
def test_the_seed_decides_on_the_first_weights(recorded: RecordingTrainer) -> None:
    assert_equal(recorded.steps[0].before, tiny.model(seed=7, num_classes=6).state_dict())


@covers("train.batch_size", "train.accumulate", "train.seed")
def test_images_come_in_the_order_of_the_stream(
    recorded: RecordingTrainer, shapes: DataConfig
) -> None:
    stream = TrainingStream(train_dataset(shapes), 32, seed=7)
    batches = [batch for step in recorded.steps for batch in step.batches]
    assert [batch.batch_size for batch in batches] == [2] * 16
    for number in (0, 7, 15):
        for place in (0, 1):
            sample = stream[2 * number + place]
            assert batches[number].image_ids[place] == sample.image_id
            assert torch.equal(batches[number].image_BCHW[place], sample.image_CHW)


def test_every_forward_pass_draws_points_of_its_own(recorded: RecordingTrainer) -> None:
    states = {state.numpy().tobytes() for step in recorded.steps for state in step.generators}
    assert len(states) == 16
    neighbours = {
        seed_of(seed, step, process)
        for seed in range(6)
        for step in range(6)
        for process in range(6)
    }
    assert len(neighbours) == 216


def gradients_by_hand(
    recorded: RecordingTrainer, step: Step
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """-> the gradient of the two micro-batches together, before clipping, and what the log is to
    say of them: their sums are divided by what both have."""
    model = tiny.model(num_classes=6)
    model.load_state_dict(step.before)
    model.train()
    criterion = Criterion(recorded.config.model, recorded.config.loss)
    logged = dict.fromkeys(("loss", *LOSS_WEIGHTS), 0.0)
    parts = []
    for batch, points, generator in zip(step.batches, step.points, step.generators, strict=True):
        torch.set_rng_state(generator)
        prediction = model(batch, points)
        own = sum(batch.counts), int((prediction.aligned.instance_BA >= 0).sum())
        parts.append((own, by_name(criterion(prediction, batch))))
    of_both = [sum(own[kind] for own, _ in parts) for kind in (0, 1)]
    for own, losses in parts:
        total = torch.zeros(())
        for name, weight in LOSS_WEIGHTS.items():
            kind = name.startswith("aligned")
            loss_L = losses[f"{name}_L"] * (own[kind] / of_both[kind])
            total = total + weight * loss_L.sum()
            logged[name] += loss_L[-1].item()
        total.backward()
        logged["loss"] += total.item()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    logged["grad_norm"] = (
        sum(float(gradient.double().square().sum()) for gradient in gradients.values()) ** 0.5
    )
    return gradients, logged


@covers("train.accumulate", "train.clip")
@covers("loss.class_weight", "loss.mask_weight", "loss.dice_weight", "loss.aligned_weight")
@pytest.mark.parametrize("number", [0, 5])
def test_the_optimizer_gets_the_clipped_mean_gradient(
    recorded: RecordingTrainer, number: int
) -> None:
    step = recorded.steps[number]
    gradients, logged = gradients_by_hand(recorded, step)
    assert logged["grad_norm"] > 2 * 2.5  # otherwise nothing is clipped
    expected = {
        name: gradient * (2.5 / logged["grad_norm"]) for name, gradient in gradients.items()
    }
    torch.testing.assert_close(step.gradients, expected, rtol=1e-3, atol=1e-6)
    assert step.values == pytest.approx(logged, rel=1e-4)


def test_a_gradient_below_the_limit_is_left_as_it_is(shapes: DataConfig, tmp_path: Path) -> None:
    trainers = [
        RecordingTrainer(config(shapes, tmp_path, f"{clip}", clip=clip)) for clip in (0.0, 1e6)
    ]
    for trainer in trainers:
        trainer.train_step(trainer.batches())
    unlimited, limited = (trainer.steps[0] for trainer in trainers)
    assert 1.0 < unlimited.values["grad_norm"] < 1e6
    assert_equal(unlimited.gradients, limited.gradients)


@covers("train.learning_rate", "train.backbone_multiplier", "train.warmup", "train.milestones")
def test_learning_rates_of_every_iteration(recorded: RecordingTrainer) -> None:
    # Three iterations of warm-up; of eight iterations, the third (number 2) is at 0.25, the seventh
    # at 0.75.
    factors = [1 / 3, 2 / 3, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert len(recorded.steps) == 8
    for step, factor in zip(recorded.steps, factors, strict=True):
        assert step.rates == pytest.approx(
            {
                name: 3e-3 * factor * (0.25 if name.startswith("backbone.") else 1)
                for name in step.rates
            }
        )
        assert step.rates.keys() == {
            name for name, p in recorded.model.named_parameters() if p.requires_grad
        }
    assert [line["lr"] for line in lines(recorded.run_dir)] == pytest.approx([3e-4, 3e-4, 3e-5])


@covers("train.learning_rate", "train.backbone_multiplier", "train.weight_decay")
def test_weights_follow_adamw(recorded: RecordingTrainer) -> None:
    """Loshchilov and Hutter's formula, with betas of 0.9 and 0.999 and an epsilon of 1e-8."""
    moments: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step in recorded.steps[:3]:
        for name, gradient in small(step.gradients).items():
            g, weight, rate = gradient.double(), step.before[name].double(), step.rates[name]
            mean, square, count = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g), 0))
            mean, square, count = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2, count + 1
            moments[name] = mean, square, count
            direction = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            decay = 0.0 if NOT_DECAYED.search(name) else 0.3
            expected = weight - rate * (direction + decay * weight)
            torch.testing.assert_close(step.after[name].double(), expected, rtol=1e-6, atol=1e-7)
        for name in step.before.keys() - step.gradients.keys():
            assert torch.equal(step.before[name], step.after[name]), name
    assert sum(NOT_DECAYED.search(name) is not None for name in moments) == 40


@covers("train.ema")
def test_the_moving_average_is_that_of_the_weights(
    recorded: RecordingTrainer, shapes: DataConfig, tmp_path: Path
) -> None:
    kept = checkpoint.latest(recorded.run_dir)
    expected = moving_average([small(step.after) for step in recorded.steps], 0.5)
    assert_close(small(checkpoint.load_weights(kept, ema=True)), expected)
    assert_equal(checkpoint.load_weights(kept, ema=False), recorded.steps[-1].after)

    slower = RecordingTrainer(config(shapes, tmp_path, ema=0.6, learning_rate=1e-2))
    batches = slower.batches()
    for _ in range(6):
        slower.train_step(batches)
        slower.step += 1
    history = [small(step.after) for step in slower.steps]
    found = small(slower.ema.module.state_dict())
    assert_close(found, moving_average(history, 0.6))
    with pytest.raises(AssertionError):
        assert_close(found, moving_average(history, 0.7))


@covers(
    "train.iterations",
    "train.log_every",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.keep_checkpoints",
)
def test_what_is_written_when(recorded: RecordingTrainer) -> None:
    assert recorded.saved == [6, 8]
    assert recorded.kept == ["step_0000008"]
    assert recorded.evaluated == [5, 8]
    assert [line["step"] for line in lines(recorded.run_dir, "eval")] == [5, 8]
    assert [line["step"] for line in lines(recorded.run_dir)] == [3, 6, 8]
    kept = recorded.run_dir / "checkpoints" / "step_0000008"
    assert checkpoint.load_meta(kept)["step"] == 8
    assert checkpoint.load_config(kept) == recorded.config


def test_the_log_has_the_means_since_its_last_line(recorded: RecordingTrainer) -> None:
    board = EventAccumulator(str(recorded.run_dir / "tensorboard"))
    board.Reload()
    logged = lines(recorded.run_dir)
    for line, (first, last) in zip(logged, ((0, 3), (3, 6), (6, 8)), strict=True):
        window = recorded.steps[first:last]
        for name in (*LOSS_WEIGHTS, "loss", "grad_norm"):
            mean = sum(step.values[name] for step in window) / (last - first)
            assert line[name] == pytest.approx(mean, rel=1e-5), name
    for name in (*LOSS_WEIGHTS, "loss", "grad_norm", "lr", "it_per_s"):
        scalars = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        assert scalars == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in logged]
    for mode in ("class", "class*mask", "class^0.5*mask"):
        scalars = [(event.step, event.value) for event in board.Scalars(f"eval/AP_{mode}")]
        assert scalars == [
            (line["step"], pytest.approx(line["eval"]["modes"][mode]["metrics"]["AP"], rel=1e-6))
            for line in lines(recorded.run_dir, "eval")
        ]


@covers("train.precision")
def test_number_formats_reach_the_layers(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16, which needs a GPU, reaches Accelerate."""
    seen: dict[str, tuple[torch.dtype, bool]] = {}
    for precision in ("auto", "fp32", "tf32", "bf16"):
        trainer = Trainer(config(shapes, tmp_path, precision, precision=precision))
        trainer.model.pixel_decoder.embed.register_forward_hook(
            lambda *arguments, key=precision: seen.update({key: (arguments[2].dtype, tf32_is_on())})
        )
        trainer.train_step(trainer.batches())
    if not torch.cuda.is_available():
        assert seen.pop("auto") == (torch.float32, False)
    assert seen["fp32"] == (torch.float32, False)
    assert seen["tf32"] == (torch.float32, True)
    assert seen["bf16"] == (torch.bfloat16, True)
    monkeypatch.setattr(checks, "capability_at_hand", lambda: (7, 0))
    fp16 = Trainer(config(shapes, tmp_path, "fp16", precision="fp16"))
    assert fp16.accelerator.mixed_precision == "fp16"


def test_float16_is_refused_without_a_gpu(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would compute in float32 and say nothing."""
    monkeypatch.setattr(checks, "capability_at_hand", lambda: None)
    with pytest.raises(ValueError, match=r"train\.precision fp16: there is no GPU.*use bf16"):
        Trainer(config(shapes, tmp_path, precision="fp16"))
    assert not list(tmp_path.iterdir())


def tf32_is_on() -> bool:
    return torch.backends.cuda.matmul.allow_tf32


@covers("train.init_from")
def test_a_run_starts_from_given_weights_once(shapes: DataConfig, tmp_path: Path) -> None:
    given = tmp_path / "given"
    settings = config(shapes, tmp_path, init_from=given, iterations=1, checkpoint_every=1)
    model = tiny.model(seed=5, num_classes=6)
    data = resolve_paths(shapes)
    classes = train_dataset(data)
    meta = {"step": 0, "class_names": classes.class_names, "category_ids": classes.category_ids}
    checkpoint.save(given, replace(settings, data=data), model.state_dict(), meta)
    trainer = RecordingTrainer(settings)
    assert_equal(trainer.model.state_dict(), model.state_dict())
    trainer.run()
    continued = RecordingTrainer(replace(settings, train=replace(settings.train, iterations=2)))
    assert_equal(continued.model.state_dict(), trainer.steps[0].after)
