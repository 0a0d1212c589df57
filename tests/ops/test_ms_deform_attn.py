"""Multi-scale deformable attention: reference and kernel against loops in float64.

Shapes: B images, S tokens, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignmask import _core, ops
from tests.ops import cases, oracles, strategies
from tests.ops.compare import NONDETERMINISM, array, assert_near, assert_same

OP = "ms_deform_attn"
Arguments = tuple[Tensor, Sequence[tuple[int, int]], Tensor, Tensor]

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


def forward_backward(
    arguments: Arguments, needed: Sequence[bool] = (True, True, True)
) -> list[Tensor]:
    """out, then the needed gradients for a fixed random gradient of out."""
    value, levels, locations, weights = arguments
    leaves = [
        t.detach().requires_grad_(need)
        for t, need in zip((value, locations, weights), needed, strict=True)
    ]
    out = ops.ms_deform_attn(leaves[0], levels, leaves[1], leaves[2])
    if not any(needed):
        return [out]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def near_kink(levels: Sequence[tuple[int, int]], locations: Tensor) -> Tensor:
    """Points within rounding of a pixel centre, where the gradient in their location jumps; [B, Q,
    N, L, P, 1]."""
    sizes_L12 = torch.tensor([[[w, h]] for h, w in levels], dtype=torch.float64).view(-1, 1, 2)
    pixel = locations.double() * sizes_L12 - 0.5
    return ((pixel - pixel.round()).abs() < 1e-4).any(-1, keepdim=True)


def check(arguments: Arguments, kinks: bool = False) -> None:
    """Compare out and all gradients with the oracle; `kinks`: also at pixel centres (exact if sizes
    are powers of two)."""
    value, levels, locations, weights = arguments
    out, grad_value, grad_locations, grad_weights = forward_backward(arguments)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    expected = oracles.ms_deform_attn(
        array(value), levels, array(locations), array(weights), array(grad)
    )

    def largest(tensor: Tensor) -> float:
        return float(tensor.detach().abs().max()) if tensor.numel() else 0.0

    size = 1 + max(itertools.chain(*levels), default=0)  # a position is rounded relative to it
    v, w, g, D = largest(value), largest(weights), largest(grad), value.shape[3]
    _, Q, _, L, P, _ = locations.shape
    assert_near(out, expected[0], size * v * w * math.sqrt(L * P))
    assert_near(grad_value, expected[1], size * w * g * math.sqrt(Q * P), "gradient of value")
    assert_near(grad_weights, expected[3], size * v * g * math.sqrt(D), "gradient of weights")
    if not kinks:
        skip = near_kink(levels, locations)
        grad_locations = grad_locations.masked_fill(skip, 0)
        expected[2][skip.expand_as(locations).numpy()] = 0
    assert_near(
        grad_locations, expected[2], size * size * v * w * g * math.sqrt(D), "gradient of locations"
    )


@given(strategies.deform_shapes(), strategies.layouts, strategies.dtype_pairs(), strategies.seeds)
def test_equals_the_oracle(
    shape: cases.DeformShape, layout: str, dtypes: tuple[torch.dtype, torch.dtype], seed: int
) -> None:
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            check(cases.ms_deform_attn(shape, layout, *dtypes, seed=seed))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", cases.SMALL)
def test_every_instruction_set_equals_the_oracle(
    instruction_set: str, name: str, dtype: torch.dtype
) -> None:
    assert ops.implementation(OP, "cpu") == f"kernel ({instruction_set})"
    check(cases.ms_deform_attn(cases.MS_DEFORM_ATTN[name], "uniform", dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exactly_on_pixel_centres_and_borders(implementation: str, dtype: torch.dtype) -> None:
    """-0.5 pixels, 0, the last pixel, one pixel outside, ...; the gradient in the location is that
    of the right-hand side."""
    levels = [(2, 4), (1, 8)]
    grids = []
    for h, w in levels:
        y, x = np.meshgrid(
            (np.arange(2 * h + 3) - 1) / (2 * h),
            (np.arange(2 * w + 3) - 1) / (2 * w),
            indexing="ij",
        )
        grids.append(np.stack([x, y], -1).reshape(-1, 2))
    Q = max(map(len, grids))
    locations = torch.stack([torch.tensor(np.resize(grid, (Q, 2))) for grid in grids], 1).view(
        1, Q, 1, 2, 1, 2
    )
    value, _, _, weights = cases.ms_deform_attn(
        cases.DeformShape(1, tuple(levels), 1, 8, Q, 1), dtype=dtype
    )
    check((value, levels, locations.to(dtype), weights), kinks=True)


def test_one_pixel_by_hand(implementation: str) -> None:
    value = torch.tensor([[[[10.0, 20.0]]]])
    at = {
        (0.5, 0.5): 1.0,
        (0.0, 0.5): 0.5,
        (1.0, 1.0): 0.25,
        (-0.5, 0.5): 0.0,
        (1.5, 0.5): 0.0,
        (0.75, 0.5): 0.75,
    }
    for point, part in at.items():
        out = ops.ms_deform_attn(
            value, [(1, 1)], torch.tensor(point).view(1, 1, 1, 1, 1, 2), torch.full((1,) * 5, 3.0)
        )
        assert out.tolist() == [[[30 * part, 60 * part]]], point


@pytest.mark.parametrize("name", cases.SMALL)
def test_gradcheck(implementation: str, name: str) -> None:
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN[name], "uniform", torch.float64
    )
    assert not near_kink(levels, locations).any()
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ops.ms_deform_attn(v, levels, x, w), leaves, eps=1e-6, atol=1e-6, fast_mode=True,
        nondet_tol=0.0 if cases.repeats(implementation) else NONDETERMINISM,
    )  # fmt: skip


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("name", ["tiny", "odd", "wide"])
def test_gradients_that_are_needed_equal_those_of_all(
    implementation: str, name: str, needed: tuple[bool, ...]
) -> None:
    arguments = cases.ms_deform_attn(cases.MS_DEFORM_ATTN[name], "local")
    everything = forward_backward(arguments)
    wanted = [everything[0], *itertools.compress(everything[1:], needed)]
    found = forward_backward(arguments, needed)
    assert len(found) == len(wanted)
    for i, (some, full) in enumerate(zip(found, wanted, strict=True)):
        of_value = needed[0] and i == 1
        assert_same(some, full, cases.repeats(implementation) or not of_value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_is_read_and_rounded_as_by_torch(
    instruction_set: str, dtype: torch.dtype
) -> None:
    """One pixel per number, sampled at its centre, times weights that hit halfway cases, subnormals
    and overflow."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    value = numbers.view(-1, 1, 1, 1)
    centre = torch.full((2**16, 1, 1, 1, 1, 2), 0.5)
    for weight in (1.0, 0.5, 1 + 2**-11, 1 + 2**-8, 3e-5, 1 / 3, 7.7, 1e4):
        out = ops.ms_deform_attn(value, [(1, 1)], centre, torch.full((2**16, 1, 1, 1, 1), weight))
        expected = (numbers.float() * weight).to(dtype)
        assert torch.equal(out.flatten().isnan(), expected.isnan())
        assert torch.equal(out.flatten().nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


# ---- memory layouts


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def sliced(tensor: Tensor) -> Tensor:
    """Every second element along every dimension of a larger tensor of NaN."""
    holder = torch.full([2 * size + 1 for size in tensor.shape], math.nan, dtype=tensor.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def reversed_dimensions(tensor: Tensor) -> Tensor:
    return (
        tensor.permute(*reversed(range(tensor.dim())))
        .contiguous()
        .permute(*reversed(range(tensor.dim())))
    )


@pytest.mark.parametrize("layout", [transposed, sliced, reversed_dimensions])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", ["tiny", "odd", "wide"])
def test_strides_do_not_matter(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, name: str
) -> None:
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN[name], "local", dtype
    )
    plain = forward_backward((value, levels, locations, weights))
    strided = forward_backward((layout(value), levels, layout(locations), layout(weights)))
    for a, b in zip(plain, strided, strict=True):
        assert torch.equal(a, b)


def test_expanded_arguments_and_gradient(implementation: str) -> None:
    """Stride 0: all queries look at one place; and the gradient that sum() sends is a single
    number, expanded."""
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"])
    value_1 = value[:1].clone().requires_grad_()
    locations_1, weights_1 = locations[:1, :1], weights[:1, :1]
    expanded = ops.ms_deform_attn(
        value_1.expand_as(value),
        levels,
        locations_1.expand_as(locations),
        weights_1.expand_as(weights),
    )
    expanded.sum().backward()
    assert value_1.grad is not None
    repeated = value_1.detach().repeat(2, 1, 1, 1).requires_grad_()
    Q = locations.shape[1]
    out = ops.ms_deform_attn(
        repeated, levels, locations_1.repeat(2, Q, 1, 1, 1, 1), weights_1.repeat(2, Q, 1, 1, 1)
    )
    assert torch.equal(out, expanded)
    out.backward(torch.ones_like(out))
    assert repeated.grad is not None
    torch.testing.assert_close(value_1.grad, repeated.grad.sum(0, keepdim=True))


# ---- determinism


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [{}, {"P": 3}, {"D": 65, "Q": 2000}], ids=str)
def test_threads_and_repetition_do_not_change_a_bit(
    dtype: torch.dtype, change: dict[str, int]
) -> None:
    """P = 3 and bfloat16 points are copied first, D = 65 takes two passes: every thread has buffers
    of its own for that."""
    shape = cases.encoder(256)._replace(**{"Q": 6000, **change})
    arguments = cases.ms_deform_attn(shape, "uniform", dtype)
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


def test_every_instruction_set_agrees(instruction_set: str) -> None:
    """On a case with many queries, within rounding of fused multiply-adds."""
    arguments = cases.ms_deform_attn(cases.encoder(64), "local", torch.float32)
    found = forward_backward(arguments)
    _core.select_cpu_instruction_set("baseline")
    skip = near_kink(arguments[1], arguments[2])
    for index, (a, b) in enumerate(zip(found, forward_backward(arguments), strict=True)):
        if index == 2:
            a, b = a.masked_fill(skip, 0), b.masked_fill(skip, 0)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


# ---- sizes one below, at and one above what kernels count in


@pytest.mark.parametrize("implementation", cases.implementations(OP, emulated=False), indirect=True)
@pytest.mark.parametrize(
    ("B", "N", "levels", "dtype"),
    [
        *((1, N, ((128, 128),), torch.float32) for N in (7, 8, 9)),
        (1, 8, ((150, 140), (50, 60)), torch.float32),
        (2, 8, ((100, 100), (40, 50)), torch.float64),
        (2, 2, ((257, 512),), torch.float32),
    ],
)
def test_waves_of_packed_values(
    implementation: str, B: int, N: int, levels: tuple[tuple[int, int], ...], dtype: torch.dtype
) -> None:
    """Heads of 24 channels are copied, as 32, some 16 MB at a time: 8 heads of 128 x 128; 5; 5;
    even one is too large."""
    check(cases.ms_deform_attn(cases.DeformShape(B, levels, N, 24, 40, 4), "uniform", dtype))


@pytest.mark.parametrize("D", [1, 4, 32, 33])
@pytest.mark.parametrize("count", [31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257])
def test_blocks_of_queries_and_tiles_of_tokens(implementation: str, count: int, D: int) -> None:
    """`count` queries over a level of as many tokens, and a few more, in float64 and in float32."""
    shape = cases.DeformShape(1, ((1, count), (2, 2)), 1, D, count, 3)
    for dtype in (torch.float64, torch.float32):
        check(cases.ms_deform_attn(shape, "uniform", dtype))


@pytest.mark.parametrize("P", [3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33])
def test_rounds_of_points(implementation: str, P: int) -> None:
    for D in (5, 32):
        check(cases.ms_deform_attn(cases.DeformShape(2, ((3, 4), (2, 1)), 2, D, 3, P), "uniform"))


# ---- not finite


def test_nan_locations_give_nan_and_infinite_ones_are_outside(implementation: str) -> None:
    for name, dtype in itertools.product(("tiny", "odd", "wide"), cases.DTYPES):
        value, levels, locations, weights = cases.ms_deform_attn(
            cases.MS_DEFORM_ATTN[name], dtype=dtype
        )
        plain = ops.ms_deform_attn(value, levels, locations, weights)
        D = value.shape[3]
        for axis in (0, 1):
            nan = locations.clone()
            nan[0, 1, 0, 0, -1, axis] = math.nan
            out = ops.ms_deform_attn(value, levels, nan, weights)
            assert out[0, 1, :D].isnan().all()
            out[0, 1, :D] = plain[0, 1, :D]
            assert torch.equal(out, plain)
            for far in (math.inf, -math.inf, torch.finfo(dtype).max, torch.finfo(dtype).min):
                outside, elsewhere = locations.clone(), locations.clone()
                outside[0, 1, 0, 0, -1, axis], elsewhere[0, 1, 0, 0, -1] = far, 7
                found = forward_backward((value, levels, outside, weights))
                for i, (a, b) in enumerate(
                    zip(found, forward_backward((value, levels, elsewhere, weights)), strict=True)
                ):
                    assert_same(a, b, cases.repeats(implementation) or i != 1)


@given(
    strategies.deform_shapes(),
    strategies.layouts,
    strategies.dtype_pairs(),
    strategies.seeds,
    st.data(),
)
def test_values_and_weights_that_are_not_finite_reach_what_they_touch(
    shape: cases.DeformShape,
    layout: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
    data: st.DataObject,
) -> None:
    """Where the oracle is finite, so are we, and equal; where it is not, neither are we."""
    value, levels, locations, weights = cases.ms_deform_attn(shape, layout, *dtypes, seed=seed)
    for tensor in (value, weights):
        for _ in range(data.draw(st.integers(0, 2)) if tensor.numel() else 0):
            at = data.draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[at] = data.draw(st.sampled_from((math.nan, math.inf, -math.inf)))
    with np.errstate(invalid="ignore"):
        expected = oracles.ms_deform_attn(array(value), levels, array(locations), array(weights))[0]
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            # The backward pass must not crash, either.
            out = forward_backward((value, levels, locations, weights))[0]
            # A corner of weight 0 counts or not, depending on the rounding of a position at a pixel
            # centre.
            sure = ~near_kink(levels, locations).flatten(3).any(-1)[..., None].expand(
                *out.shape[:2], shape.N, shape.D
            )
            sure_BQE = sure.reshape(out.shape).numpy()
            finite = np.isfinite(expected)
            assert np.array_equal(out.isfinite().numpy()[sure_BQE], finite[sure_BQE])
            np.testing.assert_allclose(
                array(out)[sure_BQE & finite], expected[sure_BQE & finite], rtol=2e-2, atol=2e-2
            )  # coarse: bfloat16; precision is tested above
