"""What a new model holds, tensor by tensor: the published initial values of Mask2Former and
Deformable DETR."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from alignmask.config import AlignedQueryConfig, BackboneConfig, ModelConfig
from alignmask.model import AlignMask, build_model
from alignmask.model.pixel_decoder import MSDeformAttn
from tests import tiny
from tests.model import peers

# Names of tensors by the kind of their initial values. In Mask2Former's decoder query, key and
# value are one matrix of three times as many outputs ("packed").
CONSTANT = {
    r".*norms?(\.\d)?\.weight": 1.0,
    r".*norms?(\.\d)?\.bias": 0.0,
    r"pixel_decoder\.(project\.\d|lateral|fuse)\.1\.weight": 1.0,  # GroupNorm
    r"pixel_decoder\.(project\.\d|lateral|fuse)\.1\.bias": 0.0,
    r"pixel_decoder\.(project\.\d\.0|embed)\.bias": 0.0,
    r"pixel_decoder\.layers\.\d\.attention\.(value|output|weights)\.bias": 0.0,
    r"pixel_decoder\.layers\.\d\.attention\.(offsets|weights)\.weight": 0.0,
    r"query_decoder\.layers\.\d\..*_attention\.(query|key|value|output)\.bias": 0.0,
    r"query_decoder\.heads\.classify\.bias": -math.log(99.0),  # probability 0.01
}
NORMAL = (
    r"pixel_decoder\.level_embedding",
    r"query_decoder\.(query|query_position|level_embedding|aligned_position)",
)
XAVIER = (
    r"pixel_decoder\.(project\.\d\.0|fuse\.0|embed)\.weight",
    r"pixel_decoder\.layers\.\d\.(attention\.(value|output)|ffn\.\d)\.weight",
    r"query_decoder\.layers\.\d\.(.*_attention\.output|ffn\.\d)\.weight",
)
PACKED = r"query_decoder\.layers\.\d\..*_attention\.(query|key|value)\.weight"
KAIMING = r"pixel_decoder\.lateral\.0\.weight"
TORCH = (  # torch's own for a linear layer
    r"query_decoder\.heads\.(mask\.\d|classify)\.weight",
    r"(query_decoder\.heads\.mask|.*\.ffn|aligned_queries\.mlp)\.\d\.bias",
    r"aligned_queries\.mlp\.\d\.weight",
)
OFFSETS = r"pixel_decoder\.layers\.\d\.attention\.offsets\.bias"
# Of 8 heads, one after the other: right, down and right, down ...
DIRECTIONS = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])


def is_any(name: str, *patterns: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@pytest.fixture(scope="module")
def model() -> AlignMask:
    """Full width, all parts, few layers."""
    config = ModelConfig(
        backbone=BackboneConfig("resnet10t", pretrained=False),
        aligned_queries=AlignedQueryConfig(
            learned_position=True, share_self_attention=False, share_masked_attention=False
        ),
    )
    few = replace(config.pixel_decoder, layers=2), replace(config.query_decoder, layers=2)
    torch.manual_seed(0)
    return build_model(replace(config, pixel_decoder=few[0], query_decoder=few[1])).requires_grad_(
        False
    )


def assert_uniform(value: Tensor, bound: float) -> None:
    """Up to the bound, and spread evenly: as far as so many numbers can tell."""
    few = 6 / value.numel()
    assert bound * (1 - few) - 0.01 * bound <= value.abs().max() <= bound
    assert value.square().mean().sqrt() * 3**0.5 == pytest.approx(
        bound, rel=3 / value.numel() ** 0.5
    )


def test_every_tensor_starts_as_published(model: AlignMask) -> None:
    checked = 0
    for name, value in model.named_parameters():
        if name.startswith("backbone."):
            continue
        inputs = value[0].numel() if value.ndim > 1 else 0
        outputs = value.numel() // value.shape[1] if value.ndim > 1 else 0
        constants = [constant for pattern, constant in CONSTANT.items() if is_any(name, pattern)]
        if constants:
            assert value.unique().tolist() == pytest.approx(constants), name
        elif is_any(name, *NORMAL):
            assert value.std() == pytest.approx(1, rel=4 / value.numel() ** 0.5), name
            assert value.mean() == pytest.approx(0, abs=4 / value.numel() ** 0.5), name
        elif is_any(name, *XAVIER):
            assert_uniform(value, (6 / (inputs + outputs)) ** 0.5)
        elif is_any(name, PACKED):
            assert_uniform(value, (6 / (inputs + 3 * outputs)) ** 0.5)
        elif is_any(name, KAIMING):
            assert inputs != outputs
            assert_uniform(value, (3 / inputs) ** 0.5)
        elif is_any(name, *TORCH):
            weight = model.get_parameter(name.replace(".bias", ".weight"))
            assert_uniform(value, weight[0].numel() ** -0.5)
        else:
            assert is_any(name, OFFSETS), name
            # Deformable DETR: a head's points stand 1 to 4 steps away in the head's direction, at
            # every level.
            for head, points in enumerate(value.view(8, 3, 4, 2)):
                steps = torch.arange(1, 5)[:, None] * DIRECTIONS[head]
                torch.testing.assert_close(points, steps.expand(3, 4, 2).float(), atol=1e-5, rtol=0)
        checked += 1
    assert checked > 100


@pytest.mark.parametrize(("heads", "levels", "points"), [(8, 3, 4), (6, 2, 3), (1, 4, 2)])
def test_initial_sampling_is_that_of_hugging_face(heads: int, levels: int, points: int) -> None:
    """At a new layer every query samples the same offsets with the same weights, whatever it is."""
    whole = peers.mask2former(peers.BACKBONES["resnet"])
    width = 8 * heads
    theirs = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        width, heads, levels, points
    )
    whole._init_weights(theirs)
    ours = MSDeformAttn(width, heads, levels, points)
    for own, peer in (
        (ours.offsets, theirs.sampling_offsets),
        (ours.weights, theirs.attention_weights),
    ):
        torch.testing.assert_close(own.weight, peer.weight, atol=0, rtol=0)
        torch.testing.assert_close(own.bias, peer.bias, atol=1e-6, rtol=1e-6)


def test_softmax_classes_start_as_torch_has_them() -> None:
    """No class is rare: the no-object class has a weight of its own."""
    bias = tiny.model(classification="softmax").query_decoder.heads.classify.bias
    assert bias.shape == (5,)
    assert bias.abs().max() <= 32**-0.5
    assert bias.unique().numel() == 5
    focal = tiny.model(classification="focal").query_decoder.heads.classify.bias.detach()
    torch.testing.assert_close(focal.sigmoid(), torch.full((4,), 0.01))


def test_default_pixel_statistics_are_imagenets() -> None:
    """As torchvision publishes them, for R, G, B; on the scale of bytes."""
    published = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert BackboneConfig().mean == pytest.approx([255 * value for value in published.mean])
    assert BackboneConfig().std == pytest.approx([255 * value for value in published.std])
