"""A detectron2 project's code, unchanged, on our kernels: `alignmask.ops.compat.install()` before
it is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
)

from alignmask.ops import compat

EXTENSION, PROJECT = "MultiScaleDeformableAttention", "tests.integrations.detectron2_project"
LEVELS = torch.tensor([[6, 9], [3, 5], [2, 2]])
START = torch.tensor([0, 54, 69])
TOKENS = 73


@pytest.fixture
def clean() -> Iterator[None]:
    """Neither the extension's name nor the project has been imported, before or after."""
    kept = {name: sys.modules.pop(name) for name in (EXTENSION, PROJECT) if name in sys.modules}
    yield
    for name in (EXTENSION, PROJECT):
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture
def project(clean: None) -> ModuleType:
    compat.install()
    return importlib.import_module(PROJECT)


@pytest.mark.skipif(
    importlib.util.find_spec(EXTENSION) is not None, reason="the extension is installed"
)
def test_without_install_the_project_does_not_import(clean: None) -> None:
    with pytest.raises(ModuleNotFoundError, match=EXTENSION):
        importlib.import_module(PROJECT)


def test_its_autograd_function_has_the_right_gradients(project: ModuleType) -> None:
    value = torch.randn(2, TOKENS, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(2, 4, 2, 3, 2, 2, dtype=torch.float64) * 1.2 - 0.1).requires_grad_()
    weights = torch.rand(2, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def apply(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return project.MSDeformAttnFunction.apply(value, LEVELS, START, locations, weights, 64)

    assert torch.autograd.gradcheck(apply, (value, locations, weights), nondet_tol=0)


def case(coordinates: int) -> dict[str, Tensor]:
    """An encoder layer's arguments; the last quarter of the second image is padding."""
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, -TOKENS // 4 :] = True
    return {
        "query": torch.randn(2, 11, 32),
        "reference_points": torch.rand(2, 11, 3, coordinates),
        "input_flatten": torch.randn(2, TOKENS, 32),
        "input_spatial_shapes": LEVELS,
        "input_level_start_index": START,
        "input_padding_mask": padding,
    }


def pair(project: ModuleType) -> tuple[nn.Module, nn.Module]:
    """The project's module and Hugging Face's, with the same parameters."""
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(), backbone=None, use_timm_backbone=False,
        use_pretrained_backbone=False, d_model=32, num_feature_levels=3,
    )  # fmt: skip
    theirs = DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=2)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = project.MSDeformAttn(32, 3, 4, 2)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("coordinates", [2, 4])
def test_its_module_equals_an_independent_one(project: ModuleType, coordinates: int) -> None:
    ours, theirs = pair(project)
    given: Any = case(coordinates)
    grad = torch.randn(2, 11, 32)
    found = ours(**given)
    expected, _ = theirs(
        hidden_states=given["query"], reference_points=given["reference_points"],
        encoder_hidden_states=given["input_flatten"], attention_mask=~given["input_padding_mask"],
        spatial_shapes=LEVELS, spatial_shapes_list=LEVELS.tolist(), level_start_index=START,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.backward(grad)
    expected.backward(grad)
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, other.grad, rtol=1e-3, atol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )


def test_it_trains(project: ModuleType) -> None:
    module, _ = pair(project)
    given: Any = case(2)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    target = torch.randn(2, 11, 32)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (module(**given) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_mistake_in_the_project_is_named(project: ModuleType) -> None:
    module, _ = pair(project)
    with pytest.raises(
        ValueError,
        match=r"value_level_start_index\[1\] = 55, but value_spatial_shapes .* make it 54",
    ):
        module(**case(2) | {"input_level_start_index": START + torch.tensor([0, 1, 1])})
