"""Training from CUDA graphs, as far as it goes without a GPU: what a graph replays is called
instead. tests/gpu/test_training_on_gpu.py has the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignmask.config import AlignedQueryConfig, BackboneConfig, LossConfig, TrainConfig
from alignmask.loss import Criterion
from alignmask.training import graphs
from tests import tiny
from tests.covers import covers

LOSS = LossConfig(points=64)
Captured = list[tuple[str, tuple[Tensor, ...]]]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """What was captured, with its examples. Capturing runs a region, and so is noticed by whatever
    counts."""
    found: Captured = []

    def capture(
        region: nn.Module, examples: tuple[Tensor, ...], **options: Any
    ) -> Callable[..., Any]:
        assert options.keys() == {"allow_unused_input", "pool"}
        found.append((type(region).__name__, examples))
        region(*examples)
        torch.rand(3)
        return region

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    return found


@pytest.mark.parametrize(
    "aligned",
    [tiny.ALIGNED, replace(tiny.ALIGNED, mask_noise=0.2), None],
    ids=["pooled", "noised", "none"],
)
def test_a_step_is_that_of_the_model(
    captured: Captured, aligned: AlignedQueryConfig | None
) -> None:
    backbone = BackboneConfig("resnet10t", pretrained=False, freeze_norm=False)
    results = []
    for graphed in (True, False):
        model = tiny.model(backbone=backbone, aligned_queries=aligned).train()
        forward = graphs.GraphedForward(model) if graphed else model
        losses = []
        for counts in ((3, 0, 2), (1, 1, 1), (3, 0, 2)):
            batch = tiny.batch(counts)
            torch.manual_seed(0)
            losses.append(Criterion(model.config, LOSS)(forward(batch), batch).total(LOSS))
            losses[-1].backward()
        results.append(
            (
                [loss.detach() for loss in losses],
                {name: p.grad for name, p in model.named_parameters()},
                dict(model.named_buffers()),
            )
        )
    assert results[0][0] == results[1][0]
    for found, expected in zip(results[0][1:], results[1][1:], strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] is None) == (tensor is None), name
            assert tensor is None or torch.equal(found[name], tensor), name
    # 3 point sets of 3 instances and of 1; 7 slots at most
    assert [name for name, _ in captured] == ["Pixels", *["Queries"] * (2 if aligned else 1)]


def test_examples_are_not_the_batch(captured: Captured) -> None:
    """A graph writes its inputs over its examples."""
    model, batch = tiny.model().train(), tiny.batch()
    graphs.GraphedForward(model)(batch)
    (_, pixels), (_, queries) = captured
    assert pixels[0].data_ptr() != batch.image_BCHW.data_ptr()
    assert torch.equal(pixels[0], batch.image_BCHW)
    assert [tensor.requires_grad for tensor in queries] == [True] * 3 + [False, True, False, False]
    assert all(map.is_contiguous(memory_format=torch.channels_last) for map in queries[:3])


class Memory(torch.autograd.Function):
    """A region with the memory of a graph: inputs, results and gradients have fixed places, and
    every call writes over what the one before has left there."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.graph = graph
        with torch.no_grad():
            for place, tensor in zip(graph.examples, given, strict=False):
                place.copy_(tensor)
        with torch.enable_grad():
            graph.last = graph.region(*graph.examples)
        return tuple(_written(graph.results, i, x) for i, x in enumerate(graph.last))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graph = ctx.graph
        inputs = [*graph.examples, *graph.parameters]
        wanted = [i for i, x in enumerate(inputs) if x.requires_grad]
        found = torch.autograd.grad(
            graph.last, [inputs[i] for i in wanted], gradients, allow_unused=True
        )
        made: list[Tensor | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, found, strict=True):
            made[i] = None if gradient is None else _written(graph.gradients, i, gradient)
        return None, *made


class Graph:
    def __init__(self, region: nn.Module, examples: tuple[Tensor, ...]) -> None:
        self.region, self.examples = region, examples
        self.parameters = tuple(region.parameters())
        self.results: dict[int, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}
        self.last: tuple[Tensor, ...] = ()

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        assert [x.shape for x in given] == [x.shape for x in self.examples]
        found: tuple[Tensor, ...] = Memory.apply(self, *given, *self.parameters)
        return found


def _written(places: dict[int, Tensor], i: int, tensor: Tensor) -> Tensor:
    places.setdefault(i, torch.empty_like(tensor)).copy_(tensor.detach())
    return places[i].detach()


@covers("train.cuda_graphs")
def test_nothing_hangs_on_memory_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps with an optimizer, from memory as graphs have it: the same weights as without."""
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables", lambda region, examples, **_: Graph(region, examples)
    )
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    results = []
    for graphed in (True, False):
        model = tiny.model().train()
        forward = graphs.GraphedForward(model) if graphed else model
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for step, counts in enumerate(((3, 0, 2), (1, 1, 1), (3, 0, 2), (0, 0, 0), (2, 1, 1))):
            batch = tiny.batch(counts, seed=step)
            torch.manual_seed(step)
            Criterion(model.config, LOSS)(forward(batch), batch).total(LOSS).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    for name, tensor in results[1].items():
        assert torch.equal(results[0][name], tensor), name


def test_images_of_another_size_are_refused(captured: Captured) -> None:
    forward = graphs.GraphedForward(tiny.model().train())
    forward(tiny.batch())
    with pytest.raises(ValueError, match=r"train\.cuda_graphs: images .* \[3, 3, 64, 64\].*64, 96"):
        forward(tiny.batch(size=(64, 64)))


@pytest.mark.parametrize(
    ("device", "processes", "accumulate", "reason"),
    [
        ("cpu", 1, 1, "no GPU"),
        ("cuda", 2, 1, "2 processes"),
        ("cuda", 1, 2, "accumulate must be 1"),
    ],
)
def test_where_there_can_be_no_graphs(
    device: str, processes: int, accumulate: int, reason: str
) -> None:
    t = TrainConfig(cuda_graphs=True, accumulate=accumulate)
    with pytest.raises(ValueError, match=f"train.cuda_graphs: .*{reason}"):
        graphs.check(t, torch.device(device), processes)
    graphs.check(replace(t, cuda_graphs=False), torch.device(device), processes)
