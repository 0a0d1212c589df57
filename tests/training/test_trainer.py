"""Training runs end to end on a handful of synthetic images: exact resume, loud failures, nothing
lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed

import alignmask
from alignmask import checkpoint
from alignmask.config import Config, DataConfig, LossConfig
from alignmask.data import resolve_paths, val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.training.accumulation import parts_of_step
from alignmask.training.dry_run import dry_run
from alignmask.training.log import Log
from alignmask.training.signals import Stopped
from alignmask.training.trainer import Trainer, seed_of, train
from tests import tiny
from tests.training.runs import (
    RecordingTrainer,
    assert_close,
    assert_equal,
    config,
    lines,
    moving_average,
    small,
    weights,
)


def test_a_run_leaves_everything_it_should(shapes: DataConfig, tmp_path: Path) -> None:
    run = train(config(shapes, tmp_path, ema=0.9))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert {"loss", "classification", "aligned_dice", "lr", "it_per_s", "grad_norm"} <= lines[
        0
    ].keys()
    assert "eval" in lines[-1]
    for name in (
        "config.json",
        "results.json",
        "evaluation.json",
        "best/model.safetensors",
        "tensorboard",
    ):
        assert (run / name).exists(), name
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step_0000003",
        "step_0000006",
    ]
    predictor = alignmask.load(run)
    assert len(predictor.class_names) == 6
    assert not predictor.model.training


@pytest.mark.parametrize("variant", [{}, {"ema": 0.5}, {"accumulate": 2, "schedule": "cosine"}])
def test_a_resumed_run_is_bit_identical(
    shapes: DataConfig, tmp_path: Path, variant: dict[str, Any]
) -> None:
    whole = RecordingTrainer(config(shapes, tmp_path, "whole", **variant))
    whole.run()
    stopped = config(shapes, tmp_path, "stopped", **variant)
    trainer = Trainer(stopped)
    step = trainer.train_step

    def interrupted(batches: Any) -> Any:
        values = step(batches)
        if trainer.step == 3:  # the fourth iteration, after the checkpoint of the third
            os.kill(os.getpid(), signal.SIGINT)
        return values

    trainer.train_step = interrupted
    with pytest.raises(Stopped, match="after iteration 4"):
        trainer.run()
    assert checkpoint.latest(stopped.out / "stopped").name == "step_0000004"
    resumed = train(stopped)
    assert_equal(weights(whole.run_dir), weights(resumed))
    if "ema" in variant:  # the average of the iterations before the interruption and after it
        average = checkpoint.load_weights(checkpoint.latest(resumed))
        assert_close(
            small(average), moving_average([small(step.after) for step in whole.steps], 0.5)
        )
        assert_equal(checkpoint.load_weights(resumed / "best"), average)
    logs = [
        [(line["step"], line["loss"], line["lr"]) for line in lines(run)]
        for run in (whole.run_dir, resumed)
    ]
    assert [step for step, *_ in logs[0]] == [step for step, *_ in logs[1]] == [2, 4, 6]
    assert logs[0] == logs[1]


def test_a_kill_before_the_last_evaluation_does_not_leave_an_older_one(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = config(shapes, tmp_path, evaluate_every=4)
    evaluate = Trainer.evaluate

    def killed_at_the_end(self: Trainer) -> Any:
        if self.step == 6:
            raise MemoryError("killed")
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", killed_at_the_end)
    with pytest.raises(MemoryError):
        train(killed)
    monkeypatch.undo()
    evaluated = [
        line["step"]
        for line in map(json.loads, (train(killed) / "metrics.jsonl").read_text().splitlines())
        if "eval" in line
    ]
    assert evaluated == [4, 6]
    before = (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns
    train(killed)  # all is done: nothing is evaluated again
    assert (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns == before


def test_a_killed_run_repeats_what_its_checkpoint_lacks(shapes: DataConfig, tmp_path: Path) -> None:
    """A kill -9 in iteration 6 loses three iterations, and the log forgets them, too."""
    whole = train(config(shapes, tmp_path, "whole"))
    killed = config(shapes, tmp_path, "killed")
    trainer = Trainer(killed)
    step = trainer.train_step

    def killed_step(batches: Any) -> Any:
        if trainer.step == 5:
            raise MemoryError("killed")
        return step(batches)

    trainer.train_step = killed_step
    with pytest.raises(MemoryError):
        trainer.run()
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a line that the kill cut off
    resumed = train(killed)
    assert_equal(weights(whole), weights(resumed))
    lines = (resumed / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 6]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(
    shapes: DataConfig, tmp_path: Path, value: float
) -> None:
    trainer = Trainer(config(shapes, tmp_path))
    criterion = trainer.criterion

    def broken(prediction: Any, batch: Any, normalisers: Any) -> Any:
        losses = criterion(prediction, batch, normalisers)
        if trainer.step == 4:
            losses.objects.dice_L = losses.objects.dice_L + value
        return losses

    trainer.criterion = broken
    with pytest.raises(
        FloatingPointError,
        match=r"iteration 4: .*dice (nan|inf).*images \[\d+, \d+\].*step_0000003",
    ):
        trainer.run()
    assert checkpoint.latest(tmp_path / "run").name == "step_0000003"


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    shapes: DataConfig, tmp_path: Path, clip: float
) -> None:
    """Clipping would make NaN of it."""
    trainer = Trainer(config(shapes, tmp_path, checkpoint_every=1, clip=clip))
    bias = trainer.model.query_decoder.heads.classify.bias
    bias.register_hook(lambda grad: torch.full_like(grad, math.inf) if trainer.step == 2 else grad)
    with pytest.raises(
        FloatingPointError, match=r"iteration 2: gradient is not finite \(norm inf\).*step_0000002"
    ):
        trainer.run()
    assert all(
        v.isfinite().all() for v in weights(tmp_path / "run").values() if v.is_floating_point()
    )


def test_matching_costs_that_are_not_finite_name_iteration_and_checkpoint(
    shapes: DataConfig, tmp_path: Path
) -> None:
    trainer = Trainer(config(shapes, tmp_path, checkpoint_every=1))
    with torch.no_grad():
        trainer.model.query_decoder.heads.classify.bias.fill_(math.nan)
    with pytest.raises(
        FloatingPointError, match=r"iteration 0: matching: image .*non-finite costs.*none yet"
    ):
        trainer.run()


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_config = config(shapes, tmp_path, iterations=4, checkpoint_every=2, evaluate_every=2)
    evaluate, steps = Trainer.evaluate, []

    def killed_once(self: Trainer) -> Any:
        steps.append(self.step)
        if len(steps) == 1:
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", killed_once)
    with pytest.raises(KeyboardInterrupt):
        train(run_config)
    train(run_config)
    assert steps == [2, 2, 4]


def test_an_evaluation_whose_best_checkpoint_was_not_written_is_made_again(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def disk_full(folder: Path, *rest: Any, **more: Any) -> None:
        if folder.name == "best":
            raise OSError("no space left on device")
        save(folder, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", disk_full)
        with pytest.raises(OSError, match="no space"):
            train(config(shapes, tmp_path, iterations=1))
    run = train(config(shapes, tmp_path, iterations=1))
    assert (run / "best").is_dir()


def test_a_schedulers_sigterm_to_all_processes_saves(shapes: DataConfig, tmp_path: Path) -> None:
    """Data workers get it, too, and go on until the step is done."""
    run_config = config(
        replace(shapes, workers=2), tmp_path, iterations=1000, checkpoint_every=1000
    )
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_signal_the_group, args=(run_config,)
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert checkpoint.load_meta(checkpoint.latest(tmp_path / "run"))["step"] == 3


def _train_and_signal_the_group(run_config: Config) -> None:
    os.setsid()
    torch.set_num_threads(1)
    step = Trainer.train_step

    def signalled(self: Trainer, batches: Any) -> Any:
        if self.step == 2:
            os.killpg(0, signal.SIGTERM)
            time.sleep(1)
        return step(self, batches)

    Trainer.train_step = signalled  # type: ignore[method-assign]
    with contextlib.suppress(Stopped):
        train(run_config)


@pytest.mark.parametrize("change", ["order", "fewer"])
def test_validation_categories_must_be_the_training_categories(
    shapes: DataConfig, tmp_path: Path, change: str
) -> None:
    """Labels become ids through them: others would be scored as the wrong classes, or end the run
    at its first evaluation."""
    shapes = resolve_paths(shapes)
    content = json.loads(Path(shapes.val_annotations).read_text())
    names = [category["name"] for category in content["categories"]]
    if change == "order":
        for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
            category["name"] = name
    else:
        content["categories"] = content["categories"][:-1]
        content["annotations"] = [
            a for a in content["annotations"] if a["category_id"] != len(names)
        ]
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = replace(shapes, shapes=None, val_annotations=tmp_path / "val.json")
    with pytest.raises(
        ValueError, match=r"val\.json must have the categories of .*instances_train\.json"
    ):
        Trainer(config(data, tmp_path))


def test_an_old_run_is_never_overwritten(shapes: DataConfig, tmp_path: Path) -> None:
    train(config(shapes, tmp_path, iterations=1))
    other = replace(config(shapes, tmp_path, iterations=1), loss=LossConfig(points=33))
    with pytest.raises(ValueError, match=r"loss\.points: 32 -> 33.*--no-resume"):
        train(other)
    with pytest.raises(ValueError, match=r"train\.seed: 0 -> 1.*--no-resume"):
        train(config(shapes, tmp_path, iterations=1, seed=1))
    with pytest.raises(ValueError, match=r"train\.init_from: None -> elsewhere.*--no-resume"):
        train(config(shapes, tmp_path, iterations=1, init_from=Path("elsewhere")))
    train(other, resume=False)
    assert len(list(tmp_path.glob("run*"))) == 2


def test_a_finished_run_is_not_trained_again(shapes: DataConfig, tmp_path: Path) -> None:
    run = train(config(shapes, tmp_path))
    before = weights(run)
    assert_equal(before, weights(train(config(shapes, tmp_path))))


def test_time_limit_ends_the_run_with_an_evaluation(shapes: DataConfig, tmp_path: Path) -> None:
    run = train(config(shapes, tmp_path, iterations=100_000, max_minutes=0.02, schedule="cosine"))
    assert checkpoint.load_meta(checkpoint.latest(run))["step"] < 1000
    assert (run / "evaluation.json").exists()


def test_accumulation_makes_one_step_along_the_mean_gradient(
    shapes: DataConfig, tmp_path: Path
) -> None:
    trainer = Trainer(config(shapes, tmp_path, accumulate=2, batch_size=2, clip=0.0))
    assert trainer.micro_batch == 1
    steps = []

    def note(*_: object) -> None:
        steps.append(
            {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        )

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    state = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    values = trainer.train_step(trainer.batches())
    (taken,) = steps

    trainer.model.load_state_dict(state)
    trainer.model.train()
    trainer.model.zero_grad()
    batches = list(itertools.islice(trainer.batches(), 2))
    set_seed(seed_of(0, 0, 0))
    for part in parts_of_step(batches, trainer.model, trainer.criterion):
        prediction = trainer.model(part.batch, part.points_BTK2)
        losses = trainer.criterion(prediction, part.batch, part.normalisers)
        (losses.total(trainer.config.loss) / 2).backward()
    expected = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(taken, expected)
    norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    assert values["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
    with pytest.raises(ValueError, match="batch_size 3 is not a multiple"):
        Trainer(config(shapes, tmp_path / "x", accumulate=2, batch_size=3))


def test_wrong_number_of_classes_says_which_flag_to_pass(
    shapes: DataConfig, tmp_path: Path
) -> None:
    wrong = replace(config(shapes, tmp_path), model=tiny.model_config(num_classes=80))
    with pytest.raises(ValueError, match=r"6 categories.*--model\.num-classes 6"):
        Trainer(wrong)


def test_bf16_is_of_the_training_alone(shapes: DataConfig, tmp_path: Path) -> None:
    half = config(shapes, tmp_path, precision="bf16", iterations=2)
    run = train(half)
    assert all(
        value.isfinite().all() for value in weights(run).values() if value.is_floating_point()
    )
    whole = train(replace(half, name="fp32", train=replace(half.train, precision="fp32")))
    # It was in bf16.
    assert any(not torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())
    evaluate_model(
        alignmask.load(run).model, val_dataset(resolve_paths(half.data)), device="cpu", batch_size=2, workers=0, out=tmp_path
    )  # fmt: skip
    assert (run / "results.json").read_bytes() == (tmp_path / "results.json").read_bytes()


def test_dry_run_keeps_nothing(
    shapes: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(config(shapes, tmp_path), steps=2)
    out = capsys.readouterr().out
    assert "step 2:" in out
    assert "peak memory" in out
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_survives_a_resume(shapes: DataConfig, tmp_path: Path) -> None:
    """The checkpoint that a run continues from is older than the best evaluation."""
    run = train(config(shapes, tmp_path))
    meta = checkpoint.load_meta(run / "best")
    settings = config(shapes, tmp_path)
    meta["metrics"][settings.model.score]["AP"] = 0.9
    (run / "best" / "meta.json").write_text(json.dumps(meta))
    trainer = Trainer(settings)
    assert trainer.judge.best == 0.9
    trainer.run()
    assert checkpoint.load_meta(run / "best") == meta


def test_a_run_may_go_on_with_another_score(shapes: DataConfig, tmp_path: Path) -> None:
    """Nothing learned depends on it; the best checkpoint's AP by the new score is the one to
    beat."""
    run = train(config(shapes, tmp_path))
    metrics = checkpoint.load_meta(run / "best")["metrics"]
    metrics["class"]["AP"] = 0.7
    meta = {**checkpoint.load_meta(run / "best"), "metrics": metrics}
    (run / "best" / "meta.json").write_text(json.dumps(meta))
    settings = config(shapes, tmp_path)
    assert (
        Trainer(replace(settings, model=replace(settings.model, score="class"))).judge.best == 0.7
    )
    del metrics["class"]  # as if written before there was that score
    (run / "best" / "meta.json").write_text(json.dumps(meta))
    assert (
        Trainer(replace(settings, model=replace(settings.model, score="class"))).judge.best
        == -math.inf
    )


def test_a_resumed_run_obeys_new_learning_rates(shapes: DataConfig, tmp_path: Path) -> None:
    train(config(shapes, tmp_path))
    trainer = Trainer(config(shapes, tmp_path, learning_rate=5e-4, weight_decay=0.2))
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {5e-4, 5e-5}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.2, 0.0}
    assert trainer.optimizer.state


def test_the_log_is_json_whatever_the_gradient(tmp_path: Path) -> None:
    with Log(tmp_path, 0, 1) as log:
        log.metrics(1, {"loss": 1.0, "grad_norm": math.inf, "it_per_s": 1.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["grad_norm"] is None


def test_fsdp_is_refused_before_anything_is_written(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `accelerate launch --use_fsdp` sets; on a CPU, Accelerate would not even notice."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"--use_fsdp is not supported: .* give --train.shard$"):
        Trainer(config(shapes, tmp_path))
    assert not (tmp_path / "run").exists()
