"""The whole model on a GPU: what it computes, and everything that users do with it. The same on a CPU, as far as it goes."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader

from alignmask import checkpoint, ops
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.data import Batch, Sample, collate, val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.exporting.export import agreement, export_model
from alignmask.loss import Criterion
from alignmask.model import AlignMask
from alignmask.model.heads import Prediction
from alignmask.training.optimizer import build_optimizer
from alignmask.training.trainer import Trainer, train
from tests import tiny

LOSS = LossConfig(points=64)


SLOW_ON_CPU = pytest.mark.parametrize("device", ["cuda", pytest.param("cpu", marks=pytest.mark.slow)])
"""What other tests cover on the CPU."""


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers do not depend on the device."""
    rand = torch.rand

    def on_the_host(*size: Any, device: Any = None, **options: Any) -> Tensor:
        return rand(*size, generator=torch.Generator().manual_seed(0), **options).to(device or "cpu")

    monkeypatch.setattr(torch, "rand", on_the_host)


@pytest.fixture
def accelerated(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Accelerate, which would take a GPU if there is one, takes this device."""
    if device == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield device
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("shapes")
    made = ShapesConfig(root=root, train_images=8, val_images=3, size=64)
    return DataConfig(shapes=made, crop=64, eval_short_side=64, eval_max_side=64, workers=0)


def config(shapes: DataConfig, out: Path, **changes: Any) -> Config:
    """With a worker, whose batches are pinned, where there is a GPU."""
    settings = TrainConfig(
        iterations=4, batch_size=2, learning_rate=1e-3, warmup=2, clip=1.0, evaluate_every=100, checkpoint_every=2, log_every=1
    )  # fmt: skip
    data = replace(shapes, workers=int(torch.cuda.is_available()))
    return Config("run", out, tiny.model_config(num_classes=6), data, LOSS, replace(settings, **changes))


def losses(run: Path) -> dict[int, float]:
    """By iteration, as they stand in the log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def outputs(prediction: Prediction) -> dict[str, Tensor]:
    found = {
        "class logits": prediction.class_logits_LBRC,
        "mask embedding": prediction.mask_embedding_LBRE,
        "pixel embedding": prediction.pixel_embedding_BEHW,
        "mask logits": prediction.mask_logits(),
    }
    if prediction.aligned is not None:
        found["aligned queries"] = prediction.aligned.features_BAE
    return {name: tensor.detach() for name, tensor in found.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Relative to each tensor's largest element."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name].cpu().double() - tensor.cpu().double()).abs().max() / tensor.abs().max().cpu()
        assert error <= tolerance, (name, float(error))


def gradients(model: AlignMask, batch: Batch) -> dict[str, Tensor]:
    """Of a training step in fp32, and its loss."""
    model.train().zero_grad()
    loss = Criterion(model.config, LOSS)(model(batch), batch).total(LOSS)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


# ---- what it computes


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_plain_torch_on_the_cpu(device: str, same_points: None, training: bool) -> None:
    model = tiny.model().train(training)
    with torch.no_grad(), ops.use_reference():
        expected = outputs(copy.deepcopy(model)(tiny.batch()))
    with torch.no_grad():
        found = outputs(model.to(device)(tiny.batch().to(device)))
    assert {tensor.device.type for tensor in found.values()} == {device}
    assert_close(found, expected)


def test_aligned_queries_equal_those_of_plain_torch_on_the_cpu(device: str, same_points: None) -> None:
    """Their slots exactly, their features and the gradient of the pixel embedding within rounding."""
    batch, results = tiny.batch(), []
    generator = tiny.model().aligned_queries
    assert generator is not None
    for place, way in ((device, ()), ("cpu", ops.OPS)):
        embedding = torch.randn(3, 32, 16, 24, generator=torch.Generator().manual_seed(0)).to(place).requires_grad_()
        there = batch.to(place)
        with ops.use_reference(*way) if way else torch.enable_grad():
            made = generator.to(place)(embedding, there.masks_GHW, there.owner_G, batch.counts)
            (gradient,) = torch.autograd.grad(made.features_BAE.square().sum(), embedding)
        results.append(({"features": made.features_BAE.detach(), "gradient": gradient}, made.instance_BA, made.set_BA))
    assert torch.equal(results[0][1].cpu(), results[1][1])
    assert torch.equal(results[0][2].cpu(), results[1][2])
    assert results[1][1].max() == 4
    assert_close(results[0][0], results[1][0], 1e-5)


def test_gradients_equal_those_of_plain_torch_on_the_cpu(device: str, same_points: None) -> None:
    """A whole training step in fp32. New models sample at pixel centres, where gradients jump: these are moved off.

    Which pixels are seen and which points are uncertain hangs on the last bits, so on a GPU a few gradients may differ more.
    """
    model = tiny.model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("offsets.bias"):
                parameter.add_(torch.linspace(0.2, 0.4, len(parameter)))
    with ops.use_reference():
        expected = gradients(copy.deepcopy(model), tiny.batch())
    found = gradients(model.to(device), tiny.batch().to(device))
    assert found.keys() == expected.keys()
    large = {name: tensor for name, tensor in expected.items() if tensor.norm() > 1e-3}
    assert len(large) > 50
    errors = {name: float((found[name].cpu() - tensor).norm() / tensor.norm()) for name, tensor in large.items()}
    assert statistics.median(errors.values()) < 1e-3
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < (1e-2 if device == "cpu" else 0.3), worst


def test_deterministic_mode(device: str) -> None:
    """No op of ours warns, and the same forward pass gives the same bits."""
    model, batch = tiny.model().to(device), tiny.batch().to(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gradients(model, batch)
            model.eval()
            with torch.no_grad():
                first, second = outputs(model(batch)), outputs(model(batch))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not [w for w in caught if "alignmask" in str(w.message)]
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- training


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_training_step(device: str, same_points: None, precision: str) -> None:
    """Loss and gradient norm are near those of fp32; weights move, and stay float32. fp16: with loss scaling."""
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
    expected = torch.stack([tensor.norm() for name, tensor in exact.items() if name != "loss"]).norm()
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
    if precision == "fp16":  # so small a model's gradients overflow at the scale that torch begins with: it is halved
        assert checkpoint.load_state(latest)["scaler"]["scale"] < 65536
    else:
        assert any(not torch.equal(plain[name], ema[name]) for name in plain)
    assert (checkpoint.load_state(latest)["scaler"] is not None) == (precision == "fp16")
    assert (run / "best" / "model.safetensors").exists()


def test_resume(accelerated: str, shapes: DataConfig, tmp_path: Path) -> None:
    """Weights, moments and moving average are where they were; what follows is the same, on a GPU within rounding."""
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
        assert all(torch.equal(moments[key].cpu(), saved[index][key].cpu()) for key in ("exp_avg", "exp_avg_sq"))
    trainer.run()
    logs = [losses(tmp_path / "whole" / "run"), losses(run)]
    for step in (3, 4):
        assert logs[1][step] == (logs[0][step] if accelerated == "cpu" else pytest.approx(logs[0][step], rel=0.05))


def test_one_process_of_several(device: str, tmp_path: Path) -> None:
    """torch's DistributedDataParallel with a group of one: NCCL on a GPU, gloo on a CPU; gradients are those without it."""
    backend = "nccl" if device == "cuda" else "gloo"
    if not torch.distributed.is_available() or not getattr(torch.distributed, f"is_{backend}_available")():
        pytest.skip(f"torch was built without {backend}")
    model, batch = tiny.model().to(device).train(), tiny.batch().to(device)
    results = []
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", world_size=1, rank=0)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for run in (wrapped, model):
            model.zero_grad()
            torch.manual_seed(0)
            loss = Criterion(model.config, LOSS)(run(batch), batch).total(LOSS)
            loss.backward()
            results.append((loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
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


# ---- inference


@pytest.fixture(scope="module")
def lively() -> AlignMask:
    """Its scores and masks differ from query to query."""
    model = tiny.model(detections=20).eval()
    with torch.no_grad():
        model.query_decoder.heads.classify.weight.mul_(10)
        model.query_decoder.heads.classify.bias.zero_()
    return model


def test_predict(device: str, lively: AlignMask) -> None:
    with ops.use_reference():
        expected = copy.deepcopy(lively).predict(tiny.batch())
    found = copy.deepcopy(lively).to(device).predict(tiny.batch().to(device))
    assert sum(map(len, expected)) > 20
    for one, other in zip(found, expected, strict=True):
        assert one.masks_NHW.device.type == device
        sides = [(x.scores[None], x.labels[None], x.masks[None]) for x in (one.cpu(), other.cpu())]
        assert min(agreement(*sides), agreement(*sides[::-1])) >= 0.9


def test_evaluation(device: str, shapes: DataConfig, tmp_path: Path) -> None:
    """What is written for the metrics is what the CPU finds, but for detections on the edge of being one."""
    data, model = val_dataset(shapes), tiny.model(num_classes=6).eval()
    written = []
    for place, way in ((device, ()), ("cpu", ops.OPS)):
        out = tmp_path / f"{len(written)}"
        with ops.use_reference(*way) if way else torch.no_grad():
            found = evaluate_model(copy.deepcopy(model).to(place), data, device=place, batch_size=2, workers=0, out=out)
        assert found.metrics
        written.append(json.loads((out / "results.json").read_text()))
    assert len(written[1]) > 10
    assert len(written[0]) == pytest.approx(len(written[1]), rel=0.1)
    scores = [sorted((entry["score"] for entry in entries), reverse=True)[:10] for entries in written]
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)


@SLOW_ON_CPU
def test_export(device: str, lively: AlignMask, tmp_path: Path) -> None:
    """The program that is written computes on the device what the model computes; `export` compares them."""
    share = export_model(copy.deepcopy(lively).to(device), tmp_path / "model.pt2", "torch")
    assert share is not None
    assert share >= 0.95


@SLOW_ON_CPU
def test_compiled(device: str) -> None:
    """Traced as one graph, without Inductor's code, whose compilation takes minutes."""
    torch.compiler.reset()
    model, batch = tiny.model().eval().to(device), tiny.batch().to(device)

    def run(image: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        prediction = model(replace(batch, image_BCHW=image, valid_BHW=valid))
        return prediction.class_logits_LBRC, prediction.mask_embedding_LBRE, prediction.pixel_embedding_BEHW

    with torch.no_grad():
        found = torch.compile(run, backend="aot_eager", fullgraph=True)(batch.image_BCHW, batch.valid_BHW)
        expected = run(batch.image_BCHW, batch.valid_BHW)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", ["cuda"])
def test_in_a_graph(device: str) -> None:
    """Inference of one size, captured once and replayed with other pixels."""
    model, batch = tiny.model().eval().to(device), tiny.batch().to(device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):  # kernels are loaded, and compiled, before a capture
            model(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = outputs(model(batch))
    for seed in (1, 2):
        batch.image_BCHW.copy_(tiny.batch(seed=seed).image_BCHW)
        graph.replay()
        with torch.no_grad():
            assert_close(captured, outputs(model(batch)))


@pytest.mark.parametrize("device", ["cuda"])
def test_on_a_second_stream(device: str, same_points: None) -> None:
    """A training step whose inputs another stream is still writing."""
    model, batch = tiny.model().to(device), tiny.batch().to(device)
    expected = gradients(model, batch)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late = replace(batch, image_BCHW=batch.image_BCHW.clone(), masks_GHW=batch.masks_GHW.clone())
        found = gradients(model, late)
    stream.synchronize()
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-4, atol=0)
