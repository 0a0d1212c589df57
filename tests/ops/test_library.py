"""The ops as torch operators: schema, fake tensors, autograd, compilation, and the choice of what runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alignmask import _core, ops
from tests.ops import cases

OPERATORS = [op for op in ops.OPS if "kernel" in cases.implementations(op)]


def flat(levels: list[tuple[int, int]]) -> list[int]:
    return [size for level in levels for size in level]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", ["tiny", "odd"])
def test_opcheck_of_ms_deform_attn(name: str, dtype: torch.dtype) -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN[name], "uniform", dtype)
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    torch.library.opcheck(
        torch.ops.alignmask.ms_deform_attn.default, (leaves[0], flat(levels), leaves[1], leaves[2], None)
    )


@pytest.mark.parametrize(
    "needed",
    [[True, True, True, False], [False, True, False, False], [True, False, False, False], [False, False, True, False]],
)
def test_opcheck_of_its_backward(needed: list[bool]) -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"])
    grad = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    arguments = (grad, value, flat(levels), locations, weights, None, needed)
    torch.library.opcheck(torch.ops.alignmask.ms_deform_attn_backward.default, arguments)


def test_second_derivatives_say_that_there_are_none() -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["tiny"])
    value.requires_grad_()
    out = ops.ms_deform_attn(value, levels, locations, weights)
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="alignmask::ms_deform_attn_backward has no derivative"):
        grad.sum().backward()


class Attention(torch.nn.Module):
    """The op between other operations, as in a model."""

    def __init__(self, levels: list[tuple[int, int]]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        out = ops.ms_deform_attn(
            value * 2, self.levels, locations.sigmoid(), weights.flatten(-2).softmax(-1).view_as(weights)
        )
        return out.relu().sum((1, 2))


def compiled_equals_eager(backend: str, dynamic: bool | None = None) -> None:
    torch.compiler.reset()
    compiled: Callable[..., Any] | None = None
    for shape, batch in itertools.product(("odd", "scalar"), (2, 3)):
        value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN[shape]._replace(B=batch))
        module = Attention(levels)
        compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)
        results = []
        for run in (module, compiled):
            leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
            run(*leaves).sum().backward()
            results.append([leaf.grad for leaf in leaves])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_as_one_graph(dynamic: bool | None) -> None:
    compiled_equals_eager("aot_eager", dynamic)


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    compiled_equals_eager("inductor")


def test_exports() -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"])
    module = Attention(levels)
    program = torch.export.export(module, (value, locations, weights))
    assert "alignmask.ms_deform_attn" in str(program.graph)
    torch.testing.assert_close(program.module()(value, locations, weights), module(value, locations, weights))


def test_meta_tensors_give_shapes_and_errors() -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"], dtype=torch.float16)
    value, locations, weights = (t.to("meta") for t in (value, locations, weights))
    out = ops.ms_deform_attn(value, levels, locations, weights)
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, 27), torch.float16, "meta")
    with pytest.raises(ValueError, match=r"weights \(BQNLP\) has P = 2"):
        ops.ms_deform_attn(value, levels, locations, weights[..., :2])


def test_autocast_leaves_the_dtypes_alone() -> None:
    """Half-precision values beside float32 locations are what autocast makes of a model's layers."""
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN["odd"], dtype=torch.bfloat16, points_dtype=torch.float32
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.ms_deform_attn(value, levels, locations, weights)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.ms_deform_attn(value, levels, locations, weights))


def test_the_arguments_stay_as_they_were() -> None:
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"])
    copies = [t.clone() for t in (value, locations, weights)]
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    ops.ms_deform_attn(leaves[0], levels, leaves[1], leaves[2]).sum().backward()
    for leaf, copy in zip(leaves, copies, strict=True):
        assert torch.equal(leaf, copy)


# ---- what runs


@pytest.mark.parametrize("op", OPERATORS)
def test_implementation_names_the_instruction_set(op: str) -> None:
    assert ops.implementation(op, "cpu") == f"kernel ({_core.cpu_instruction_set()})"
    assert ops.implementation(op, "meta") == "shapes only"
    assert ops.implementation(op, "mps") == "reference"


def test_use_reference_ends_with_its_block_even_after_an_error() -> None:
    def running() -> list[str]:
        return [ops.implementation(op, "cpu") for op in ops.OPS]

    def fail_inside() -> None:
        with ops.use_reference(OPERATORS[0]):
            assert ops.implementation(OPERATORS[0], "cpu") == "reference"
            with ops.use_reference():
                assert running() == ["reference"] * len(ops.OPS)
            assert (
                ops.implementation(OPERATORS[0], "cpu") == "reference"
            )  # the inner block takes back only what it added
            raise RuntimeError("inside")

    before = running()
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert running() == before


def test_the_reference_really_runs_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda *a, **k: calls.append(1) or original(*a, **k))
    arguments = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["tiny"])
    ops.ms_deform_attn(*arguments)
    assert not calls
    with ops.use_reference("ms_deform_attn"):
        ops.ms_deform_attn(*arguments)
    assert calls


def test_unknown_ops_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown op 'softmax': expected one of ms_deform_attn, "):
        ops.implementation("softmax", "cpu")
    with pytest.raises(ValueError, match="unknown op 'softmax'"), ops.use_reference("softmax"):
        pass
