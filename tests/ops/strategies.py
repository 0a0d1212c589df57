"""Hypothesis strategies over the shapes of `cases`: small, and now and then zero."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.ops import cases

seeds = st.integers(0, 2**31 - 1)
layouts = st.sampled_from(cases.LAYOUTS)
dtypes = st.sampled_from(cases.DTYPES)
channels = st.sampled_from((1, 2, 7, 8, 9, 16, 24, 31, 32, 33, 64, 65, 130))
sizes = st.tuples(st.integers(0, 6), st.integers(0, 6))


@st.composite
def dtype_pairs(draw: st.DrawFn) -> tuple[torch.dtype, torch.dtype]:
    """A dtype, and one that may stand beside it for points: the same, or float32 beside half
    precision."""
    dtype = draw(dtypes)
    half = dtype in (torch.float16, torch.bfloat16)
    return dtype, torch.float32 if half and draw(st.booleans()) else dtype


@st.composite
def deform_shapes(draw: st.DrawFn) -> cases.DeformShape:
    """One dimension is zero in a quarter of the shapes, and a level is empty now and then."""
    shape = cases.DeformShape(
        B=draw(st.integers(1, 2)),
        levels=draw(st.lists(sizes, min_size=1, max_size=3).map(tuple)),
        N=draw(st.integers(1, 3)),
        D=draw(channels),
        Q=draw(st.integers(1, 4)),
        P=draw(st.integers(1, 6)),
    )
    zero = draw(st.sampled_from(("B", "N", "D", "Q", "P", "levels", *[None] * 18)))
    return shape._replace(**{zero: () if zero == "levels" else 0}) if zero else shape


@st.composite
def pool_shapes(draw: st.DrawFn) -> cases.PoolShape:
    B = draw(st.integers(0, 3))
    G = draw(st.integers(0, 4)) if B else 0
    channels = draw(st.sampled_from((0, 1, 3, 8, 17)))
    T, K = draw(st.integers(0, 3)), draw(st.integers(0, 40))
    return cases.PoolShape(B, channels, draw(sizes), draw(sizes), G, T, K)


@st.composite
def points_shapes(draw: st.DrawFn) -> cases.PointsShape:
    G = draw(st.integers(0, 3))
    R = draw(st.integers(0, 4)) if G else 0
    return cases.PointsShape(R, draw(sizes), draw(sizes), G, draw(st.integers(0, 40)))


@st.composite
def iou_shapes(draw: st.DrawFn) -> cases.IouShape:
    B = draw(st.integers(0, 3))
    G = draw(st.integers(0, 4)) if B else 0
    size = draw(st.tuples(st.integers(0, 12), st.integers(0, 20)))
    scale = draw(st.integers(1, 4)) if 0 not in size else 1
    return cases.IouShape(B, draw(st.integers(0, 11)), size, scale, G)


@st.composite
def rle_shapes(draw: st.DrawFn) -> cases.RleShape:
    """Resized to anything between a pixel and many times the size, once or twice."""

    def pair(most: int) -> tuple[int, int]:
        return draw(st.integers(1, most)), draw(st.integers(1, most))

    padded = pair(70)
    valid = (draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1])))
    logits = draw(st.sampled_from((pair(12), pair(70), padded)))
    size = draw(st.sampled_from((valid, pair(6), pair(140))))
    return cases.RleShape(draw(st.integers(0, 3)), logits, size, padded, valid)


@st.composite
def loss_shapes(draw: st.DrawFn) -> cases.LossShape:
    return cases.LossShape(draw(st.integers(0, 40)), draw(st.integers(1, 40)))
