"""The second form of ms_deform_attn as a torch operator: schema, fake tensors, autograd, compilation, export."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from alignmask import ops
from tests.ops import cases


def flat(levels: Sequence[tuple[int, int]]) -> list[int]:
    return [size for level in levels for size in level]


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    value, levels, *points = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"], "uniform", dtype)
    value, reference, offsets, logits = (t.requires_grad_() for t in (value, *points))
    torch.library.opcheck(torch.ops.alignmask.ms_deform_attn.default, (value, flat(levels), offsets, logits, reference))


@pytest.mark.parametrize("needed", [[True] * 4, [False, False, False, True], [True, False, True, False]])
def test_opcheck_of_its_backward(needed: list[bool]) -> None:
    value, levels, reference, offsets, logits = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"])
    grad = torch.randn(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])
    arguments = (grad, value, flat(levels), offsets, logits, reference, needed)
    torch.library.opcheck(torch.ops.alignmask.ms_deform_attn_backward.default, arguments)


class Attention(torch.nn.Module):
    """The op between other operations, as in a model."""

    def __init__(self, levels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.levels = list(levels)

    def forward(self, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        out = ops.ms_deform_attn_from_offsets(value * 2, self.levels, reference.sigmoid(), offsets.sin(), logits / 2)
        return out.relu().sum((1, 2))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_as_one_graph(dynamic: bool | None) -> None:
    torch.compiler.reset()
    for batch in (2, 3):
        value, levels, *points = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"]._replace(B=batch))
        module = Attention(levels)
        results = []
        for run in (module, torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=dynamic)):
            leaves = [t.clone().requires_grad_() for t in (value, *points)]
            run(*leaves).sum().backward()
            results.append([leaf.grad for leaf in leaves])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_exports() -> None:
    value, levels, *points = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"])
    module = Attention(levels)
    program = torch.export.export(module, (value, *points))
    assert "alignmask.ms_deform_attn" in str(program.graph)
    torch.testing.assert_close(program.module()(value, *points), module(value, *points))


def test_meta_tensors_give_shapes_and_errors() -> None:
    value, levels, *points = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"], dtype=torch.float16)
    value, reference, offsets, logits = (t.to("meta") for t in (value, *points))
    out = ops.ms_deform_attn_from_offsets(value, levels, reference, offsets, logits)
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, 27), torch.float16, "meta")
    with pytest.raises(ValueError, match=r"logits \(BQNLP\) has P = 2"):
        ops.ms_deform_attn_from_offsets(value, levels, reference, offsets, logits[..., :2])
