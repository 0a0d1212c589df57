"""The second form of multi-scale deformable attention: reference points, offsets and logits,
against loops in float64.

Shapes: B images, S tokens, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from alignmask import _core, ops
from tests.ops import cases, oracles, strategies
from tests.ops.compare import NONDETERMINISM, array, assert_near, assert_same
from tests.ops.errors import Errors

OP = "ms_deform_attn"
Arguments = tuple[Tensor, Sequence[tuple[int, int]], Tensor, Tensor, Tensor]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


@pytest.fixture(params=_core.cpu_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.cpu_instruction_set()
    _core.select_cpu_instruction_set(request.param)
    yield request.param
    _core.select_cpu_instruction_set(before)


def forward_backward(arguments: Arguments, needed: Sequence[bool] = (True,) * 4) -> list[Tensor]:
    """out, then the needed gradients (value, reference, offsets, logits) for a fixed random
    gradient of out."""
    value, levels, *points = arguments
    leaves = [
        t.detach().requires_grad_(need) for t, need in zip((value, *points), needed, strict=True)
    ]
    out = ops.ms_deform_attn_from_offsets(leaves[0], levels, *leaves[1:])
    if not any(needed):
        return [out]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def near_kink(
    levels: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, margin: float = 1e-4
) -> Tensor:
    """Points within rounding of a pixel centre, where the gradient in their location jumps; [B, Q,
    N, L, P, 1]."""
    size_L12 = torch.tensor([[[w, h]] for h, w in levels], dtype=torch.float64).view(-1, 1, 2)
    pixel = reference.double()[:, :, None, :, None] * size_L12 + offsets.double() - 0.5
    return ((pixel - pixel.round()).abs() < margin * (1 + pixel.abs())).any(-1, keepdim=True)


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def check(arguments: Arguments) -> None:
    """Compare out and all gradients with the oracle; positions are rounded relative to the level's
    size."""
    value, levels, reference, offsets, logits = arguments
    out, *gradients = forward_backward(arguments)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    expected = oracles.ms_deform_attn_from_offsets(
        array(value), levels, array(reference), array(offsets), array(logits), array(grad)
    )
    size = 1 + max(itertools.chain(*levels), default=0)
    v, g, D = largest(value), largest(grad), value.shape[3]
    _, Q, N, L, P, _ = offsets.shape
    far = size * (1 + largest(reference)) + largest(
        offsets.clamp(-10 * size, 10 * size)
    )  # a position, and its rounding
    spread = 1 + largest(logits)  # rounding a logit changes its weight in proportion
    assert_near(out, expected[0], far * v * spread * math.sqrt(L * P))
    assert_near(gradients[0], expected[1], far * g * spread * math.sqrt(Q * P), "gradient of value")
    assert_near(gradients[3], expected[4], far * v * g * spread * D, "gradient of logits")
    skip = near_kink(levels, reference, offsets)
    assert_near(
        gradients[2].masked_fill(skip, 0),
        np.where(skip.numpy(), 0, expected[3]),
        far * v * g * spread * D,
        "gradient of offsets",
    )
    skip_BQL1 = skip.any(4).any(2)
    assert_near(
        gradients[1].masked_fill(skip_BQL1, 0),
        np.where(skip_BQL1.numpy(), 0, expected[2]),
        size * far * v * g * spread * D * N * P,
        "gradient of reference",
    )


@given(strategies.deform_shapes(), strategies.layouts, strategies.dtype_pairs(), strategies.seeds)
def test_equals_the_oracle(
    shape: cases.DeformShape, layout: str, dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            check(cases.ms_deform_attn_from_offsets(shape, layout, *dtypes, seed=seed))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", cases.SMALL)
def test_every_instruction_set_equals_the_oracle(
    instruction_set: str, name: str, dtype: torch.dtype
) -> None:
    assert ops.implementation(OP, "cpu") == f"kernel ({instruction_set})"
    check(cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN[name], "uniform", dtype))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", cases.TILED)
def test_tiles_of_queries_equal_the_oracle(
    implementation: str, name: str, dtype: torch.dtype
) -> None:
    """The CUDA kernels work on squares of queries, and sort the points of several chunks, where
    there are enough."""
    for layout in ("local", "border"):
        check(cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN[name], layout, dtype))


@pytest.mark.parametrize("name", [*cases.SMALL, *cases.TILED, "encoder_256"])
def test_equals_the_first_form(implementation: str, name: str) -> None:
    """After softmax and location arithmetic in torch."""
    shape = cases.MS_DEFORM_ATTN[name]._replace(Q=min(cases.MS_DEFORM_ATTN[name].Q, 300))
    arguments = cases.ms_deform_attn_from_offsets(shape, "local", torch.float64)
    found = forward_backward(arguments)
    value, levels, reference, offsets, logits = (
        t.requires_grad_() if isinstance(t, Tensor) else t for t in arguments
    )
    size_L12 = torch.tensor([[[w, h]] for h, w in levels]).view(-1, 1, 2)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    out = ops.ms_deform_attn(
        value, levels, reference[:, :, None, :, None] + offsets / size_L12, weights
    )
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
    wanted = torch.autograd.grad(out, (value, reference, offsets, logits), grad)
    for a, b in zip(found, (out.detach(), *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", cases.SMALL)
def test_gradcheck(implementation: str, name: str) -> None:
    value, levels, *points = cases.ms_deform_attn_from_offsets(
        cases.MS_DEFORM_ATTN[name], "uniform", torch.float64
    )
    assert not near_kink(levels, *points[:2], margin=1e-5).any()
    leaves = [t.requires_grad_() for t in (value, *points)]
    assert torch.autograd.gradcheck(
        lambda v, *rest: ops.ms_deform_attn_from_offsets(v, levels, *rest), leaves, eps=1e-6, atol=1e-6, fast_mode=True,
        nondet_tol=0.0 if cases.repeats(implementation) else NONDETERMINISM,
    )  # fmt: skip


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("name", ["tiny", "odd", "wide"])
def test_gradients_that_are_needed_equal_those_of_all(
    implementation: str, name: str, needed: tuple[bool, ...]
) -> None:
    arguments = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN[name], "local")
    everything = forward_backward(arguments)
    wanted = [everything[0], *itertools.compress(everything[1:], needed)]
    found = forward_backward(arguments, needed)
    assert len(found) == len(wanted)
    for i, (some, full) in enumerate(zip(found, wanted, strict=True)):
        of_value = needed[0] and i == 1
        assert_same(some, full, cases.repeats(implementation) or not of_value)


# ---- memory layouts, threads


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    def sliced(tensor: Tensor) -> Tensor:
        """Every second element along every dimension, in reverse order, of a larger tensor of
        NaN."""
        holder = torch.full(
            [2 * size + 1 for size in tensor.shape[::-1]], math.nan, dtype=tensor.dtype
        )
        view = holder[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(
            *reversed(range(tensor.dim()))
        )
        return view.copy_(tensor)

    for name in ("tiny", "odd", "wide"):
        value, levels, *points = cases.ms_deform_attn_from_offsets(
            cases.MS_DEFORM_ATTN[name], "local", dtype
        )
        plain = forward_backward((value, levels, *points))
        strided = forward_backward((sliced(value), levels, *map(sliced, points)))
        for a, b in zip(plain, strided, strict=True):
            assert torch.equal(a, b)


def test_one_reference_point_for_all_images_and_levels(implementation: str) -> None:
    """Stride 0, as the model passes it."""
    value, levels, reference, offsets, logits = cases.ms_deform_attn_from_offsets(
        cases.MS_DEFORM_ATTN["odd"]
    )
    few = reference[:1, :, :1].clone().requires_grad_()
    out = ops.ms_deform_attn_from_offsets(value, levels, few.expand_as(reference), offsets, logits)
    full = few.detach().repeat(reference.shape[0], 1, reference.shape[2], 1).requires_grad_()
    assert torch.equal(out, ops.ms_deform_attn_from_offsets(value, levels, full, offsets, logits))
    (grad,) = torch.autograd.grad(out.square().sum(), few)
    again = ops.ms_deform_attn_from_offsets(value, levels, full, offsets, logits)
    (grad_full,) = torch.autograd.grad(again.square().sum(), full)
    torch.testing.assert_close(grad, grad_full.sum((0, 2), keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [{}, {"P": 3}, {"D": 65, "Q": 2000}], ids=str)
def test_threads_and_repetition_do_not_change_a_bit(
    dtype: torch.dtype, change: dict[str, int]
) -> None:
    shape = cases.encoder(256)._replace(**{"Q": 6000, **change})
    arguments = cases.ms_deform_attn_from_offsets(shape, "uniform", dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8, 8):
            torch.set_num_threads(threads)
            results.append(forward_backward(arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


# ---- not finite


def test_not_finite_numbers(implementation: str) -> None:
    for name, dtype in itertools.product(("tiny", "odd", "wide"), cases.DTYPES):
        value, levels, reference, offsets, logits = cases.ms_deform_attn_from_offsets(
            cases.MS_DEFORM_ATTN[name], dtype=dtype
        )
        D = value.shape[3]
        plain = forward_backward((value, levels, reference, offsets, logits))
        at = (0, 1, 0, 0, -1)

        def changed(tensor: Tensor, index: Any, number: float) -> Tensor:
            tensor = tensor.clone()
            tensor[index] = number
            return tensor

        for bad in (
            (reference, changed(offsets, (*at, 0), math.nan), logits),
            (reference, offsets, changed(logits, at, math.nan)),
            (reference, offsets, changed(logits, at, math.inf)),
            (reference, offsets, changed(logits, at[:3], -math.inf)),
        ):
            out = ops.ms_deform_attn_from_offsets(value, levels, *bad)
            assert out[0, 1, :D].isnan().all()
            out[0, 1, :D] = plain[0][0, 1, :D]
            assert torch.equal(out, plain[0])
            forward_backward((value, levels, *bad))  # must not crash
        out = ops.ms_deform_attn_from_offsets(
            value, levels, changed(reference, (0, 1, 0, 1), math.nan), offsets, logits
        )
        assert out[0, 1].isnan().all()
        # Infinite is outside; nor must what pads the points to whole vectors make a NaN of it.
        outside = forward_backward(
            (value, levels, changed(reference, (0, 1, 0), math.inf), offsets, logits)
        )
        assert all(result.isfinite().all() for result in outside)

        found = forward_backward(
            (value, levels, reference, changed(offsets, (*at, 1), math.inf), logits)
        )
        elsewhere = forward_backward(
            (value, levels, reference, changed(offsets, (*at, 1), 1e4), logits)
        )
        for i, (a, b) in enumerate(zip(found, elsewhere, strict=True)):
            assert_same(a, b, cases.repeats(implementation) or i != 1)

        without = forward_backward(
            (value, levels, reference, offsets, changed(logits, at, -math.inf))
        )
        assert without[0].isfinite().all()
        assert without[4][at] == 0  # no gradient passes a weight of 0
        assert (without[3][at] == 0).all()


# ---- errors of the public function

ERRORS = Errors()
wrong = ERRORS.expects


@wrong(TypeError, "reference must be a torch.Tensor, got ndarray")
def reference_is_no_tensor(arguments: list) -> None:
    arguments[2] = arguments[2].numpy()


@wrong(TypeError, "reference .*float16")
def reference_of_less_precision(arguments: list) -> None:
    arguments[2] = arguments[2].half()


@wrong(TypeError, "offsets .*float64")
def offsets_of_another_dtype(arguments: list) -> None:
    arguments[3] = arguments[3].double()


@wrong(ValueError, r"reference must have the 4 dimensions BQL2, got \(2, 5, 2\)")
def reference_without_levels(arguments: list) -> None:
    arguments[2] = arguments[2][:, :, 0]


@wrong(ValueError, r"reference \(BQL2\) has B = 1 in .*, but value has B = 2")
def images_differ(arguments: list) -> None:
    arguments[2] = arguments[2][:1]


@wrong(ValueError, r"offsets \(BQNLP2\) has L = 3 in .*, but reference has L = 1")
def one_level_of_references(arguments: list) -> None:
    arguments[2] = arguments[2][:, :, :1]


@wrong(ValueError, r"logits \(BQNLP\) has P = 2 in .*, but offsets has P = 3")
def points_differ(arguments: list) -> None:
    arguments[4] = arguments[4][..., :2]


@wrong(ValueError, r"level_shapes lists 2 levels, but offsets has L = 3")
def a_level_is_missing(arguments: list) -> None:
    arguments[1] = arguments[1][:2]


@wrong(TypeError, r"level_shapes must be a sequence of pairs of ints \(h, w\), got Tensor")
def levels_are_a_tensor(arguments: list) -> None:
    arguments[1] = torch.tensor(arguments[1])


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_the_argument(implementation: str, name: str) -> None:
    error, message, change = ERRORS[name]
    arguments = list(cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"]))
    change(arguments)
    with pytest.raises(error, match=f"ms_deform_attn_from_offsets: {message}"):
        ops.ms_deform_attn_from_offsets(*arguments)
