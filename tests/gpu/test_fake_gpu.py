"""The model on a GPU as far as shapes, strides and devices go: traced with tensors that only say
that they are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss.label_assignment import mask_ious
from alignmask.loss.matcher import cost
from alignmask.model import AlignMask
from alignmask.model.heads import Prediction
from alignmask.ops import _library
from tests import tiny

NEEDS_NO_GPU = True
LOSS = LossConfig(points=64)


class CopiesFromTheHost(TorchDispatchMode):
    """Lists the operators that make a tensor on the GPU from one of the host: the host waits for
    them, no graph has them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        given = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if (
            any(x.device.type == "cuda" for x in made)
            and given
            and all(x.device.type == "cpu" for x in given)
        ):
            self.found.append(str(function))
        return result


@pytest.fixture(params=[None, 0.2], ids=["pooled", "noised"])
def pretend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[AlignMask, Batch]]:
    """A model and a batch that say they are on a GPU, for which there are kernels."""
    monkeypatch.setattr(_library._gpus, "usable", lambda device: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # FakeTensorMode knows none
    aligned = replace(tiny.ALIGNED, mask_noise=request.param)
    model, batch = tiny.model(aligned_queries=aligned), tiny.batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = there(tensor)
        yield model, batch.to("cuda")


def there(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def check(prediction: Prediction, rows: int) -> None:
    L, B, Q, C, E = 4, 3, 6, 4, 32
    assert prediction.queries == Q
    expected = {
        "class_logits_LBRC": (L, B, rows, C), "mask_embedding_LBRE": (L, B, rows, E), "pixel_embedding_BEHW": (B, E, 16, 24),
    }  # fmt: skip
    for name, shape in expected.items():
        tensor = getattr(prediction, name)
        assert (tensor.device.type, tuple(tensor.shape)) == ("cuda", shape), name
    assert prediction.class_logits_LBRC.is_contiguous()
    assert prediction.mask_embedding_LBRE.is_contiguous()
    assert prediction.pixel_embedding_BEHW.is_contiguous(memory_format=torch.channels_last)
    logits = prediction.mask_logits()
    assert (logits.device.type, tuple(logits.shape)) == ("cuda", (B, rows, 16, 24))
    assert logits.is_contiguous()  # mask_iou's fast layout


def test_inference(pretend: tuple[AlignMask, Batch]) -> None:
    model, batch = pretend
    check(model.eval()(batch), rows=6)


def test_inference_needs_nothing_of_the_host(pretend: tuple[AlignMask, Batch]) -> None:
    """So it can be captured in a CUDA graph."""
    model, batch = pretend
    with CopiesFromTheHost() as copies:
        model.eval()(batch)
    assert copies.found == []
    with CopiesFromTheHost() as copies:
        torch.arange(3).to("cuda")
    assert len(copies.found) == 1


def test_training(pretend: tuple[AlignMask, Batch]) -> None:
    """With aligned queries: three sets of at most three instances, but seven slots."""
    model, batch = pretend
    prediction = model.train()(batch)
    check(prediction, rows=6 + 7)
    assert prediction.aligned is not None
    for name in ("features_BAE", "instance_BA", "set_BA"):
        assert getattr(prediction.aligned, name).device.type == "cuda"
    assert prediction.class_logits_LBRC.requires_grad


@pytest.mark.parametrize("resolution", ["image", "prediction"])
def test_ious(pretend: tuple[AlignMask, Batch], resolution: Any) -> None:
    model, batch = pretend
    ious = mask_ious(model.train()(batch), batch, LossConfig(iou_resolution=resolution))
    assert (ious.device.type, ious.dtype, tuple(ious.shape)) == ("cuda", torch.float32, (4, 5, 13))
    assert ious.is_contiguous()


def test_costs(pretend: tuple[AlignMask, Batch]) -> None:
    model, batch = pretend
    prediction, points = model.train()(batch), torch.rand(3, 64, 2, device="cuda")
    costs = cost(prediction, batch, LOSS, model.config.classification, points)
    assert (costs.device.type, costs.dtype, tuple(costs.shape)) == (
        "cuda",
        torch.float32,
        (4, 5, 6),
    )
