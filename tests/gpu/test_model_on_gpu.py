"""The whole model on a GPU: what it computes, and everything that users do with it. The same on a
CPU, as far as it goes."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignmask import ops
from alignmask.config import DataConfig
from alignmask.data import val_dataset
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.exporting.export import Form, export_model
from alignmask.exporting.parity import agreement
from alignmask.model import AlignMask
from alignmask.model.heads import Prediction
from alignmask.model.pixel_decoder import PixelFeatures
from tests import tiny
from tests.gpu.steps import gradients

pytestmark = pytest.mark.usefixtures("float32_is_float32")


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


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    """Relative to each tensor's largest element."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (
            found[name].cpu().double() - tensor.cpu().double()
        ).abs().max() / tensor.abs().max().cpu()
        assert error <= tolerance, (name, float(error))


# ---- what it computes


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_plain_torch_on_the_cpu(
    device: str, same_points: None, training: bool
) -> None:
    model = tiny.model().train(training)
    with torch.no_grad(), ops.use_reference():
        expected = outputs(copy.deepcopy(model)(tiny.batch()))
    with torch.no_grad():
        found = outputs(model.to(device)(tiny.batch().to(device)))
    assert {tensor.device.type for tensor in found.values()} == {device}
    assert_close(found, expected)


def test_aligned_queries_equal_those_of_plain_torch_on_the_cpu(
    device: str, same_points: None
) -> None:
    """Their slots exactly, their features and the gradient of the pixel embedding within
    rounding."""
    batch, results = tiny.batch(), []
    generator = tiny.model().aligned_queries
    assert generator is not None
    for place, way in ((device, ()), ("cpu", ops.OPS)):
        embedding = (
            torch.randn(3, 32, 16, 24, generator=torch.Generator().manual_seed(0))
            .to(place)
            .requires_grad_()
        )
        there = batch.to(place)
        with ops.use_reference(*way) if way else torch.enable_grad():
            made = generator.to(place)(PixelFeatures([], embedding), there)
            (gradient,) = torch.autograd.grad(made.features_BAE.square().sum(), embedding)
        results.append(
            (
                {"features": made.features_BAE.detach(), "gradient": gradient},
                made.instance_BA,
                made.set_BA,
            )
        )
    assert torch.equal(results[0][1].cpu(), results[1][1])
    assert torch.equal(results[0][2].cpu(), results[1][2])
    assert results[1][1].max() == 4
    assert_close(results[0][0], results[1][0], 1e-5)


def test_gradients_equal_those_of_plain_torch_on_the_cpu(device: str, same_points: None) -> None:
    """A whole training step in fp32. New models sample at pixel centres, where gradients jump:
    these are moved off.

    Which pixels are seen and which points are uncertain hangs on the last bits, so on a GPU a few
    gradients may differ more.
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
    errors = {
        name: float((found[name].cpu() - tensor).norm() / tensor.norm())
        for name, tensor in large.items()
    }
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
    """What is written for the metrics is what the CPU finds, but for detections on the edge of
    being one."""
    data, model = val_dataset(shapes), tiny.model(num_classes=6).eval()
    written = []
    for place, way in ((device, ()), ("cpu", ops.OPS)):
        out = tmp_path / f"{len(written)}"
        with ops.use_reference(*way) if way else torch.no_grad():
            found = evaluate_model(
                copy.deepcopy(model).to(place), data, device=place, batch_size=2, workers=0, out=out
            )
        assert found.metrics
        written.append(json.loads((out / "results.json").read_text()))
    assert len(written[1]) > 10
    assert len(written[0]) == pytest.approx(len(written[1]), rel=0.1)
    scores = [
        sorted((entry["score"] for entry in entries), reverse=True)[:10] for entries in written
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)


@pytest.mark.parametrize("device", ["cuda", pytest.param("cpu", marks=pytest.mark.slow)])
def test_export(device: str, lively: AlignMask, tmp_path: Path) -> None:
    """The program that is written computes on the device what the model computes; `export` compares
    them."""
    model = copy.deepcopy(lively).to(device)
    exported = export_model(model, tmp_path / "model.pt2", Form("torch"))
    assert exported.parity is not None  # it raises if file and model differ


def test_compiled(device: str) -> None:
    """Traced as one graph, without Inductor's code, whose compilation takes minutes."""
    torch.compiler.reset()
    model, batch = tiny.model().eval().to(device), tiny.batch().to(device)

    def run(image: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        prediction = model(replace(batch, image_BCHW=image, valid_BHW=valid))
        return (
            prediction.class_logits_LBRC,
            prediction.mask_embedding_LBRE,
            prediction.pixel_embedding_BEHW,
        )

    with torch.no_grad():
        found = torch.compile(run, backend="aot_eager", fullgraph=True)(
            batch.image_BCHW, batch.valid_BHW
        )
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
        late = replace(
            batch, image_BCHW=batch.image_BCHW.clone(), masks_GHW=batch.masks_GHW.clone()
        )
        found = gradients(model, late)
    stream.synchronize()
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-4, atol=0)
