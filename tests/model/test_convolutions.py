"""Normalisations that convolutions compute as well: the same outputs, gradients and checkpoints as
without."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from alignmask.config import BackboneConfig
from alignmask.model import convolutions
from alignmask.model.backbone import Backbone
from alignmask.model.convolutions import FoldingConv, fold

EXPECTED = {"resnet10t": 14, "tf_efficientnet_lite0": 48, "resnetv2_50": 32, "regnety_002": 44}
"""Of resnetv2_50's 48 normalisations, 16 read a sum."""


def backbone(name: str, freeze_norm: bool = True) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(name, pretrained=False, freeze_norm=freeze_norm)
    made = Backbone(config)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            with torch.no_grad():
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return made


@contextmanager
def unfolded() -> Iterator[None]:
    with patch.object(convolutions, "folds", lambda norm: False):
        yield


def image() -> Tensor:
    return 255 * torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def folding(body: nn.Module) -> list[nn.Module]:
    return [module for module in body.modules() if isinstance(module, FoldingConv)]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_maps(name: str) -> None:
    body = backbone(name).eval()
    assert len(folding(body)) == EXPECTED[name]
    with torch.no_grad():
        found = body(image())
        with unfolded():
            expected = body(image())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_no_normalisation_runs_when_statistics_are_fixed() -> None:
    body = backbone("resnet10t").train()
    with patch.object(torch.nn.functional, "batch_norm", side_effect=AssertionError):
        body(image())


def test_the_same_gradients_when_statistics_are_fixed() -> None:
    body = backbone("resnet10t").train()
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.requires_grad_(True)  # the statistics are fixed, the affine part need not be

    def gradients() -> dict[str, Tensor]:
        body.zero_grad()
        sum(m.square().mean() for m in body(image())).backward()  # type: ignore[union-attr]
        return {name: p.grad.clone() for name, p in body.named_parameters() if p.grad is not None}

    found = gradients()
    with unfolded():
        expected = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name
        )


def test_trained_statistics_are_of_the_batch() -> None:
    body = backbone("resnet10t", freeze_norm=False).train()
    before = copy.deepcopy(body)
    found = body(image())
    with unfolded():
        expected = before(image())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(body.state_dict()[name], tensor, msg=name)
    with torch.no_grad():
        body.eval()(image())  # and folds the new statistics afterwards
        found = body(image())
        with unfolded():
            expected = body(image())
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-4)


def test_changed_weights_are_used_at_once() -> None:
    body = backbone("resnet10t").eval()
    with torch.no_grad():
        body(image())
        for tensor in body.state_dict().values():
            if tensor.is_floating_point():
                tensor.data.mul_(0.9)  # as no counter of versions sees it
        found = body(image())
        with unfolded():
            expected = body(image())
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-4)


class Read(nn.Module):
    """A convolution and its normalisation; the second map reads what the convolution returned."""

    def __init__(self, twice: bool, bias: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), twice

    def forward(self, x: Tensor) -> list[Tensor]:
        made = self.conv(x)
        return [self.norm(made), *([made + 1] if self.twice else [])]


def test_what_others_read_is_left_alone() -> None:
    assert fold(Read(twice=True, bias=False)) == 0
    assert fold(Read(twice=False, bias=False)) == 1


def test_a_bias_is_scaled_as_well() -> None:
    body = Read(twice=False, bias=True).eval()
    for tensor in body.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    (expected,) = body(image())
    fold(body)
    torch.testing.assert_close(body(image())[0], expected)


def test_checkpoints_and_copies() -> None:
    body = backbone("resnet10t").eval()
    assert not [name for name in body.state_dict() if "norm_after" in name]
    copied = copy.deepcopy(body)
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)  # of the original alone
    read = pickle.loads(pickle.dumps(copied))
    with torch.no_grad():
        for a, b in zip(copied(image()), read(image()), strict=True):
            assert a.abs().max() > 0
            torch.testing.assert_close(a, b)
        with unfolded():
            expected = copied(image())
        torch.testing.assert_close(copied(image())[-1], expected[-1], rtol=1e-4, atol=1e-4)


def test_building_leaves_modes_and_random_numbers_alone() -> None:
    body = Read(twice=False, bias=False).train()
    body.norm.eval()
    state = torch.get_rng_state()
    fold(body)
    assert body.conv.training
    assert not body.norm.training
    assert torch.equal(torch.get_rng_state(), state)
