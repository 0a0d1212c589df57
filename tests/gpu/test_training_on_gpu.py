"""Training of the whole model on a GPU. The same on a CPU, as far as it goes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from alignmask import checkpoint
from alignmask.config import Config, DataConfig, TrainConfig
from alignmask.data import Sample, collate
from alignmask.loss import Criterion
from alignmask.training.graphs import GraphedForward
from alignmask.training.optimizer import build_optimizer
from alignmask.training.trainer import Trainer, train
from tests import tiny
from tests.gpu.steps import LOSS, gradients

pytestmark = pytest.mark.usefixtures("float32_is_float32")


@pytest.fixture
def accelerated(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Accelerate, which would take a GPU if there is one, takes this device."""
    if device == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield device
    AcceleratorState._reset_state(reset_partial_state=True)


def config(shapes: DataConfig, out: Path, **changes: Any) -> Config:
    """With a worker, whose batches are pinned, where there is a GPU."""
    settings = TrainConfig(
        iterations=4, batch_size=2, learning_rate=1e-3, warmup=2, clip=1.0, evaluate_every=100, checkpoint_every=2, log_every=1
    )  # fmt: skip
    data = replace(shapes, workers=int(torch.cuda.is_available()))
    return Config(
        "run", out, tiny.model_config(num_classes=6), data, LOSS, replace(settings, **changes)
    )


def losses(run: Path) -> dict[int, float]:
    """By iteration, as they stand in the log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_training_step(device: str, same_points: None, precision: str) -> None:
    """Loss and gradient norm are near those of fp32; weights move, and stay float32. fp16: with
    loss scaling."""
    if device == "cpu" and precision in ("tf32", "fp16"):
        pytest.skip("a CPU has neither TF32 nor loss scaling")
    model, batch = tiny.model().to(device), tiny.batch().to(device)
    exact = gradients(copy.deepcopy(model), batch)
    optimizer = build_optimizer(model, TrainConfig(learning_rate=1e-3))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16", init_scale=1024.0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device, dtype, enabled=dtype is not None):
        prediction = model.train()(batch)
    loss = Criterion(model.config, LOSS)(prediction, batch).total(LOSS)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(loss.detach(), exact["loss"], rtol=0.05, atol=0)
    expected = torch.stack(
        [tensor.norm() for name, tensor in exact.items() if name != "loss"]
    ).norm()
    torch.testing.assert_close(norm, expected, rtol=1e-3 if precision == "fp32" else 0.3, atol=0)
    after = dict(model.named_parameters())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    assert sum(not torch.equal(after[name], before[name]) for name in after) > 50


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run(accelerated: str, shapes: DataConfig, tmp_path: Path, precision: str) -> None:
    """Training with a moving average, pinned batches from a worker, evaluation, checkpoints."""
    if accelerated == "cpu" and precision != "bf16":
        pytest.skip("a CPU has no loss scaling, and other tests run it in fp32")
    run = train(config(shapes, tmp_path, precision=precision, ema=0.9))
    assert list(losses(run)) == [1, 2, 3, 4]
    assert all(0 < loss < 1e3 for loss in losses(run).values())
    latest = checkpoint.latest(run)
    plain, ema = (checkpoint.load_weights(latest, ema=ema) for ema in (False, True))
    assert {tensor.device.type for tensor in (*plain.values(), *ema.values())} == {"cpu"}
    # So small a model's gradients overflow at the scale that torch begins with: it is halved.
    if precision == "fp16":
        assert checkpoint.load_state(latest)["scaler"]["scale"] < 65536
    else:
        assert any(not torch.equal(plain[name], ema[name]) for name in plain)
    assert (checkpoint.load_state(latest)["scaler"] is not None) == (precision == "fp16")
    assert (run / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("noise", [None, 0.2], ids=["pooled", "noised"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs(device: str, same_points: None, precision: str, noise: float | None) -> None:
    """A step from CUDA graphs has the loss and the gradients of one without them, also when the
    number of slots has changed and comes back."""
    if device == "cpu":
        pytest.skip("a CPU has no graphs: tests/training/test_graphs.py has the rest")
    count = replace(tiny.ALIGNED, count=64, point_sets=8, mask_noise=noise)
    model = tiny.model(aligned_queries=count).to(device).train()
    graphed = GraphedForward(model)
    for counts in ((3, 0, 2), (6, 1, 5), (2, 2, 1)):
        batch, results = tiny.batch(counts).to(device), []
        for forward in (model, graphed):
            model.zero_grad()
            torch.manual_seed(0)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                prediction = forward(batch)
            loss = Criterion(model.config, LOSS)(prediction, batch).total(LOSS)
            loss.backward()
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            results.append((loss.detach(), grads))
        (loss, expected), (loss_graphed, found) = results
        tolerance = 1e-3 if precision == "fp32" else 0.1
        torch.testing.assert_close(loss_graphed, loss, rtol=tolerance / 5, atol=0)
        assert found.keys() == expected.keys()
        largest = max(float(grad.abs().max()) for grad in expected.values())
        for name, grad in expected.items():
            assert (found[name] - grad).abs().max() <= tolerance * largest, name
    assert sorted(graphed.queries) == [32, 64]


def test_a_run_from_graphs(accelerated: str, shapes: DataConfig, tmp_path: Path) -> None:
    """Its losses are those of a run without, while a worker's batches are pinned."""
    runs = []
    for graphs in (False, True):
        settings = config(shapes, tmp_path / str(graphs), precision="fp32", cuda_graphs=graphs)
        if accelerated == "cpu" and graphs:
            with pytest.raises(ValueError, match="no GPU"):
                train(settings)
            return
        runs.append(losses(train(settings)))
    assert runs[1][1] == pytest.approx(runs[0][1], rel=1e-3)
    assert runs[1] == pytest.approx(runs[0], rel=0.05)


def test_resume(accelerated: str, shapes: DataConfig, tmp_path: Path) -> None:
    """Weights, moments and moving average are where they were; what follows is the same, on a GPU
    within rounding."""
    whole = config(shapes, tmp_path / "whole", ema=0.9)
    train(whole)
    stopped = replace(whole, out=tmp_path / "stopped", train=replace(whole.train, iterations=2))
    run = train(stopped)
    trainer = Trainer(replace(whole, out=tmp_path / "stopped"))
    assert trainer.step == 2
    latest = checkpoint.latest(run)
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert trainer.ema is not None
    for weights, ema in ((model.state_dict(), False), (trainer.ema.module.state_dict(), True)):
        for name, tensor in checkpoint.load_weights(latest, ema=ema).items():
            assert weights[name].device.type == accelerated
            assert torch.equal(weights[name].cpu(), tensor), name
    saved = checkpoint.load_state(latest)["optimizer"]["state"]
    for index, moments in trainer.optimizer.state_dict()["state"].items():
        assert all(
            torch.equal(moments[key].cpu(), saved[index][key].cpu())
            for key in ("exp_avg", "exp_avg_sq")
        )
    trainer.run()
    logs = [losses(tmp_path / "whole" / "run"), losses(run)]
    for step in (3, 4):
        assert logs[1][step] == (
            logs[0][step] if accelerated == "cpu" else pytest.approx(logs[0][step], rel=0.05)
        )


def test_one_process_of_several(device: str, tmp_path: Path) -> None:
    """torch's DistributedDataParallel with a group of one: NCCL on a GPU, gloo on a CPU; gradients
    are those without it."""
    backend = "nccl" if device == "cuda" else "gloo"
    if (
        not torch.distributed.is_available()
        or not getattr(torch.distributed, f"is_{backend}_available")()
    ):
        pytest.skip(f"torch was built without {backend}")
    model, batch = tiny.model().to(device).train(), tiny.batch().to(device)
    results = []
    torch.distributed.init_process_group(
        backend, init_method=f"file://{tmp_path / 'meeting'}", world_size=1, rank=0
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for run in (wrapped, model):
            model.zero_grad()
            torch.manual_seed(0)
            loss = Criterion(model.config, LOSS)(run(batch), batch).total(LOSS)
            loss.backward()
            results.append(
                (loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None))
            )
    finally:
        torch.distributed.destroy_process_group()
    assert len(results[0]) > 50
    largest = max(
        float(b.abs().max()) for b in results[1][1:]
    )  # some gradients are but rounding: a norm takes them away
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * largest)


def test_batches_of_a_loader(device: str) -> None:
    """Pinned by the loader's thread, copied without waiting."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(torch.randint(0, 256, (3, 64, 96), generator=generator).to(torch.uint8), torch.rand(n, 64, 96) > 0.5,
               torch.arange(n) % 4, n, f"{n}.png", (64, 96))
        for n in (3, 0, 2, 1)
    ]  # fmt: skip
    loader = DataLoader(samples, batch_size=2, collate_fn=collate, pin_memory=device == "cuda")
    for batch, expected in zip(loader, (collate(samples[:2]), collate(samples[2:])), strict=True):
        assert batch.image_BCHW.is_pinned() == (device == "cuda")
        there = batch.to(device, non_blocking=True)
        for name in ("image_BCHW", "valid_BHW", "masks_GHW", "labels_G", "owner_G"):
            assert getattr(there, name).device.type == device
            assert torch.equal(getattr(there, name).cpu(), getattr(expected, name)), name
