"""Layouts that only a GPU's libraries choose, seen without one: shapes and strides alone are
computed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from alignmask.config import AlignedQueryConfig, PixelDecoderConfig
from alignmask.model import pixel_decoder
from alignmask.model.aligned_queries import AlignedQueryGenerator
from alignmask.model.layers import feed_forward, mlp
from alignmask.model.pixel_decoder import PixelDecoder, PixelFeatures
from alignmask.ops import _library
from tests import tiny


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_pixel_embedding_has_its_channels_together(device: str) -> None:
    """The pooling kernel reads vectors of channels; on a GPU, GroupNorm's output has them apart."""
    config = replace(PixelDecoderConfig(), width=64, heads=2, layers=1, ffn_width=64)
    with FakeTensorMode(), torch.device(device):
        decoder = PixelDecoder(config, [8, 16, 32, 64])
        maps = [torch.randn(2, 8 << i, 32 >> i, 48 >> i) for i in range(4)]
        embedding_BEHW = decoder(maps).embedding_BEHW
    assert embedding_BEHW.is_contiguous(memory_format=torch.channels_last), embedding_BEHW.stride()


@pytest.mark.parametrize("images", [1, 2])
def test_maps_are_upsampled_with_their_channels_together(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch copies a map that it does not take for channels-last, and its result once more."""
    config = replace(PixelDecoderConfig(), width=64, heads=2, layers=1, ffn_width=64)
    seen = []

    def interpolate(x: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(torch.empty_like(x, memory_format=torch.preserve_format))
        seen.append(F.interpolate(x, **options))  # type: ignore[arg-type]
        return seen[-1]

    decoder = PixelDecoder(config, [8, 16, 32, 64])
    maps = [torch.randn(images, 8 << i, 32 >> i, 48 >> i) for i in range(4)]
    monkeypatch.setattr(pixel_decoder, "F", SimpleNamespace(interpolate=interpolate))
    decoder(maps)
    assert len(seen) == 2
    for tensor in seen:
        assert tensor.stride(1) == 1, tensor.stride()


@pytest.mark.parametrize(
    ("counts", "on_cpu", "on_gpu"),
    [([0, 0], 0, 32), ([3, 1], 15, 32), ([7, 0], 35, 64), ([30, 2], 100, 100)],
)
def test_aligned_queries_have_few_shapes_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], on_cpu: int, on_gpu: int
) -> None:
    """There, attention is planned anew for every shape. On a CPU, slots that nothing fills would
    only cost time."""
    monkeypatch.setattr(_library._gpus, "usable", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # not in FakeTensorMode
    one = tiny.batch((1,))
    for device, slots in (("cpu", on_cpu), ("cuda", on_gpu)):
        with FakeTensorMode() if device == "cuda" else nullcontext(), torch.device(device):
            generator = AlignedQueryGenerator(
                AlignedQueryConfig(count=100, point_sets=5, points=16), 32, layers=3
            )
            batch = replace(
                one,
                masks_GHW=torch.ones(sum(counts), 32, 32, dtype=torch.bool),
                owner_G=torch.zeros(sum(counts), dtype=torch.long),
                counts=counts,
            )
            queries = generator(PixelFeatures([], torch.randn(2, 32, 8, 8)), batch)
        assert queries.features_BAE.shape == (2, slots, 32)
        assert queries.instance_BA.shape == queries.set_BA.shape == (2, slots)


@pytest.mark.parametrize("network", [mlp(8, 16, 4), feed_forward(8, 16)])
def test_no_view_is_changed_in_place_on_the_way_back(network: torch.nn.Sequential) -> None:
    """Autograd then copies all of its memory (`CopySlices`)."""
    node, seen = network(torch.randn(2, 3, 8)).grad_fn, []
    while node is not None:
        seen.append(node.name())
        node = node.next_functions[-2 if node.name() == "AddmmBackward0" else 0][0]
    assert "ReluBackward0" in seen
    assert "CopySlices" not in seen
