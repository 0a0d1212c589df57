"""The names of the Deformable DETR extension, against `grid_sample` written as that project's users
know it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask import ops
from alignmask.ops import compat
from tests.ops import cases

NAMES = ("tiny", "odd", "scalar", "wide")


def arguments(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN[name], "local", dtype
    )
    shapes = torch.tensor(levels)
    tokens = shapes.prod(1)
    return {
        "value": value,
        "value_spatial_shapes": shapes,
        "value_level_start_index": tokens.cumsum(0) - tokens,
        "sampling_locations": locations,
        "attention_weights": weights,
    }


def by_grid_sample(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    B, _, N, D = value.shape
    Q, L, P = locations.shape[1], locations.shape[3], locations.shape[4]
    sampled = []
    for level, part in enumerate(value.split([int(h * w) for h, w in shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(B * N, D, *shapes[level].tolist())
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled.append(
            F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    weights = weights.transpose(1, 2).reshape(B * N, 1, Q, L * P)
    return (
        (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1).view(B, N * D, Q).transpose(1, 2)
    )


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_equal_grid_sample(name: str, reference: bool) -> None:
    given = arguments(name)
    leaves = [
        given[key].requires_grad_() for key in ("value", "sampling_locations", "attention_weights")
    ]
    expected = by_grid_sample(leaves[0], given["value_spatial_shapes"], *leaves[1:])
    grad = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, grad)
    with cases.using("reference" if reference else "kernel", "ms_deform_attn"):
        out = compat.ms_deform_attn_forward(**given, im2col_step=64)
        gradients = compat.ms_deform_attn_backward(**given, grad_output=grad, im2col_step=64)
        applied = compat.MSDeformAttnFunction.apply(*given.values(), 128)
        found = torch.autograd.grad(applied, leaves, grad)
    assert not out.requires_grad
    assert not any(gradient.requires_grad for gradient in gradients)
    torch.testing.assert_close(out, expected.detach())
    assert torch.equal(applied, out)
    for a, b, c in zip(gradients, found, wanted, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(b, c)


def test_only_needed_inputs_get_gradients_and_there_is_no_second_derivative() -> None:
    given = arguments("odd")
    value = given["value"].requires_grad_()
    out = compat.MSDeformAttnFunction.apply(*given.values(), 64)
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    assert given["sampling_locations"].grad is None
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_code_that_imports_the_extension_by_name_finds_it() -> None:
    code = """
import alignmask.ops.compat
alignmask.ops.compat.install()
import MultiScaleDeformableAttention as MSDA
from MultiScaleDeformableAttention import ms_deform_attn_forward
assert MSDA is alignmask.ops.compat and MSDA.ms_deform_attn_backward
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


ERRORS: dict[str, tuple[type[Exception], str, Callable[[dict[str, Any]], None]]] = {
    "start": (
        ValueError,
        r"value_level_start_index\[1\] = 16, but value_spatial_shapes \[\(3, 5\), \(1, 7\), \(4, "
        r"1\)\] make it 15",
        lambda given: given["value_level_start_index"].add_(torch.tensor([0, 1, 0])),
    ),
    "count": (
        ValueError,
        r"value_level_start_index \(L\) has L = 2 in \(2,\), but value_spatial_shapes has L = 3",
        lambda given: given.update(value_level_start_index=given["value_level_start_index"][:2]),
    ),
    "dtype": (
        TypeError,
        "value_spatial_shapes must be of dtype int64, got float32",
        lambda given: given.update(value_spatial_shapes=given["value_spatial_shapes"].float()),
    ),
    "list": (
        TypeError,
        "value_spatial_shapes must be a torch.Tensor, got list",
        lambda given: given.update(value_spatial_shapes=[(3, 5)]),
    ),
    "tokens": (
        ValueError,
        "adds up to 26 tokens, but value has S = 25",
        lambda given: given.update(value=given["value"][:, :25]),
    ),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_the_argument(name: str) -> None:
    error, message, change = ERRORS[name]
    given = arguments("odd")
    change(given)
    with pytest.raises(error, match=message):
        compat.ms_deform_attn_forward(**given, im2col_step=64)
    grad = torch.randn(2, 5, 27, dtype=torch.float64)
    with pytest.raises(error, match=message):
        compat.ms_deform_attn_backward(**given, grad_output=grad, im2col_step=64)
    with pytest.raises(error, match=message):
        compat.MSDeformAttnFunction.apply(*given.values(), 64)


def test_it_is_the_same_kernel() -> None:
    given = arguments("odd", torch.float32)
    levels = [(h, w) for h, w in given["value_spatial_shapes"].tolist()]
    out = ops.ms_deform_attn(
        given["value"], levels, given["sampling_locations"], given["attention_weights"]
    )
    assert torch.equal(compat.ms_deform_attn_forward(**given, im2col_step=1), out)
