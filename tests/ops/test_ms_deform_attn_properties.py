"""Relations that hold whatever the numbers are, of ms_deform_attn in both forms: of outputs, and of
all gradients.

Shapes: B images, S tokens, N heads, D channels per head, Q queries, L levels, P points, E = N·D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignmask import ops
from tests.ops import cases, strategies

OP = "ms_deform_attn"
F64 = torch.float64
FORMS = {  # the letters of its tensors
    "locations": ("BSND", "BQNLP2", "BQNLP"),
    "offsets": ("BSND", "BQL2", "BQNLP2", "BQNLP"),
}
Levels = Sequence[tuple[int, int]]

forms = st.sampled_from(list(FORMS))
smooth = st.sampled_from(
    ("local", "uniform", "outside")
)  # gradients in locations jump at pixel centres, as in "border"


@pytest.fixture(params=cases.implementations(OP, emulated=False), autouse=True)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """In one thread: these tensors are small, and on a busy machine threads would mostly wait for
    each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with cases.using(request.param, OP):
        yield
    torch.set_num_threads(threads)


def attend(form: str, levels: Levels, value: Tensor, *points: Tensor) -> Tensor:
    function = ops.ms_deform_attn if form == "locations" else ops.ms_deform_attn_from_offsets
    return function(value, levels, *points)


def case(form: str, shape: cases.DeformShape, layout: str, seed: int) -> list[Tensor]:
    """Value and points, in float64."""
    make = cases.ms_deform_attn if form == "locations" else cases.ms_deform_attn_from_offsets
    value, _, *points = make(shape, layout, F64, seed=seed)
    return [value, *points]


def assert_same(
    first: Callable[..., Tensor], second: Callable[..., Tensor], tensors: Sequence[Tensor]
) -> None:
    """Both functions give the same result and gradients."""
    results = []
    for call in (first, second):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        out = call(*leaves)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        results.append([out, *torch.autograd.grad(out, leaves, grad, materialize_grads=True)])
    for name, a, b in zip(("out", *"0123"), *results, strict=False):
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def sizes_of(levels: Levels) -> Tensor:
    """(w, h) of every level, [L, 1, 2]; 1 for 0."""
    return torch.tensor([(max(w, 1), max(h, 1)) for h, w in levels], dtype=F64).view(-1, 1, 2)


@given(forms, strategies.deform_shapes(), strategies.layouts, strategies.seeds)
def test_linear_in_the_value(form: str, shape: cases.DeformShape, layout: str, seed: int) -> None:
    value, *points = case(form, shape, layout, seed)
    other = torch.randn(value.shape, dtype=F64)
    assert_same(
        lambda v, u, *p: attend(form, shape.levels, 2 * v - 3 * u, *p),
        lambda v, u, *p: (
            2 * attend(form, shape.levels, v, *p) - 3 * attend(form, shape.levels, u, *p)
        ),
        [value, other, *points],
    )


@given(strategies.deform_shapes(), strategies.layouts, strategies.seeds)
def test_linear_in_the_weights(shape: cases.DeformShape, layout: str, seed: int) -> None:
    value, locations, weights = case("locations", shape, layout, seed)
    other = torch.randn(weights.shape, dtype=F64)
    assert_same(
        lambda v, x, w, u: attend("locations", shape.levels, v, x, 2 * w - 3 * u),
        lambda v, x, w, u: (
            2 * attend("locations", shape.levels, v, x, w)
            - 3 * attend("locations", shape.levels, v, x, u)
        ),
        [value, locations, weights, other],
    )


@given(forms, strategies.deform_shapes(), strategies.layouts, strategies.seeds)
def test_order_of_images_queries_heads_channels_levels_and_points(
    form: str, shape: cases.DeformShape, layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = {
        "B": shape.B,
        "Q": shape.Q,
        "N": shape.N,
        "D": shape.D,
        "P": shape.P,
        "L": len(shape.levels),
    }
    order = {letter: torch.randperm(count, generator=generator) for letter, count in counts.items()}
    tokens = torch.arange(sum(h * w for h, w in shape.levels)).split(
        [h * w for h, w in shape.levels]
    )
    order["S"] = torch.cat([tokens[i] for i in order["L"]] or [torch.arange(0)])
    levels = [shape.levels[i] for i in order["L"]]

    def moved(*tensors: Tensor) -> Tensor:
        arguments = []
        for tensor, letters in zip(tensors, FORMS[form], strict=True):
            for axis, letter in enumerate(letters.replace("2", "")):
                tensor = tensor.index_select(axis, order[letter])
            arguments.append(tensor)
        out_BQND = attend(form, levels, *arguments).view(shape.B, shape.Q, shape.N, shape.D)
        for axis, letter in enumerate("BQND"):
            out_BQND = out_BQND.index_select(axis, order[letter].argsort())
        return out_BQND.flatten(2)

    assert_same(moved, lambda *t: attend(form, shape.levels, *t), case(form, shape, layout, seed))


margins = st.tuples(*[st.integers(0, 3)] * 4)


@given(
    forms,
    strategies.deform_shapes(),
    smooth,
    strategies.seeds,
    st.lists(margins, min_size=3, max_size=3),
)
def test_zeros_around_a_level_change_nothing(
    form: str,
    shape: cases.DeformShape,
    layout: str,
    seed: int,
    around: list[tuple[int, int, int, int]],
) -> None:
    """Points stay at their pixels."""
    around = around[: len(shape.levels)]  # left, right, above, below
    padded = [
        (h + above + below, w + left + right)
        for (h, w), (left, right, above, below) in zip(shape.levels, around, strict=True)
    ]
    corner = torch.tensor([(left, above) for left, _, above, _ in around], dtype=F64).view(-1, 1, 2)

    def wider(value: Tensor, positions: Tensor, *rest: Tensor) -> Tensor:
        maps = value.split([h * w for h, w in shape.levels], 1) if shape.levels else ()
        tokens = [
            F.pad(tokens.unflatten(1, level), (0, 0, 0, 0, *margin)).flatten(1, 2)
            for tokens, level, margin in zip(maps, shape.levels, around, strict=True)
        ]
        size, new_size = sizes_of(shape.levels), sizes_of(padded)
        if form == "offsets":
            positions = (positions * size[:, 0] + corner[:, 0]) / new_size[:, 0]
        else:
            positions = (positions * size + corner) / new_size
        return attend(form, padded, torch.cat([value[:, :0], *tokens], 1), positions, *rest)

    assert_same(wider, lambda *t: attend(form, shape.levels, *t), case(form, shape, layout, seed))


@given(forms, strategies.deform_shapes(), strategies.layouts, strategies.seeds, strategies.sizes)
def test_a_level_without_weight_changes_nothing(
    form: str, shape: cases.DeformShape, layout: str, seed: int, level: tuple[int, int]
) -> None:
    """Weights of 0; logits of -inf, where there are others."""
    if form == "offsets" and not shape.levels:
        return
    value, *rest, weights = case(form, shape, layout, seed)
    extra_value, *extra, extra_weights = case(
        form, shape._replace(levels=(level,)), layout, seed + 1
    )
    no_weight = torch.full_like(extra_weights, 0 if form == "locations" else -torch.inf)

    def more(value: Tensor, *points: Tensor) -> Tensor:
        joined = [
            torch.cat([tensor, other], letters.index("L"))
            for tensor, other, letters in zip(
                points, (*extra, no_weight), FORMS[form][1:], strict=True
            )
        ]
        return attend(form, (*shape.levels, level), torch.cat([value, extra_value], 1), *joined)

    assert_same(more, lambda *t: attend(form, shape.levels, *t), [value, *rest, weights])


@given(strategies.deform_shapes(), smooth, strategies.seeds)
def test_the_forms_agree_and_only_sums_and_differences_count(
    shape: cases.DeformShape, layout: str, seed: int
) -> None:
    """What moves from the reference points to the offsets, or is added to all logits of a query and
    head, cancels."""
    tensors = case("offsets", shape, layout, seed)
    size_L12 = sizes_of(shape.levels)
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(tensors[1].shape, generator=generator, dtype=F64)
    constant_BQN11 = torch.randn(shape.B, shape.Q, shape.N, 1, 1, generator=generator, dtype=F64)

    def second(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        moved = offsets - shift[:, :, None, :, None] * size_L12
        return attend(
            "offsets", shape.levels, value, reference + shift, moved, logits + constant_BQN11
        )

    def first(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = reference[:, :, None, :, None] + offsets / size_L12
        weights = logits.flatten(3).softmax(3).view_as(logits) if logits.numel() else logits
        return attend("locations", shape.levels, value, locations, weights)

    assert_same(second, first, tensors)
