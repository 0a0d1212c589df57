"""Shapes that take more than one of everything the kernels count in: blocks, warps, rounds, tiles,
chunks, bands.

Against the kernels for the CPU, which other tests compare with oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from alignmask import ops
from tests.ops import cases
from tests.simt import _simt


@pytest.fixture(params=cases.EMULATIONS)
def emulation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def results(
    implementation: str,
    op: Callable[..., Tensor],
    arguments: Sequence[object],
    leaves: Sequence[int],
) -> list[Tensor]:
    """Output of an op, and the gradients of some of its arguments for a fixed random gradient of
    the output."""
    given = [
        a.detach().clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a
        for a in arguments
    ]
    for i in leaves:
        given[i].requires_grad_()
    with cases.using(implementation, "any"):
        out = op(*given)
        if not leaves:
            return [out]
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, [given[i] for i in leaves], grad)]


def check(
    emulation: str, op: Callable[..., Tensor], arguments: Sequence[object], leaves: Sequence[int]
) -> None:
    found, expected = (results(name, op, arguments, leaves) for name in (emulation, "kernel"))
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        epsilon = torch.finfo(a.dtype).eps
        torch.testing.assert_close(
            a, b, rtol=4 * epsilon, atol=100 * epsilon * float(b.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("D", [32, 65])
def test_ms_deform_attn(emulation: str, D: int, dtype: torch.dtype) -> None:
    """Several blocks, of which the last is not full; 45 points per query and head; more tokens than
    a block owns."""
    shape = cases.DeformShape(2, ((17, 13), (5, 6), (9, 2)), 3, D, 33, 15)
    value, levels, *points = cases.ms_deform_attn_from_offsets(shape, "uniform", dtype)
    check(emulation, ops.ms_deform_attn_from_offsets, (value, levels, *points), (0, 2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_masked_point_pool(emulation: str, channels_last: bool, dtype: torch.dtype) -> None:
    """Two tiles of channels, 18 instances of one image, 300 points in a set, more pixels than a
    block owns."""
    shape = cases.PoolShape(2, 264, (13, 11), (20, 30), 36, 2, 300)
    features, masks, _, points = cases.masked_point_pool(shape, dtype=dtype)
    owner = torch.arange(36) % 2
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = features.contiguous(memory_format=layout)
    check(
        emulation, lambda *a: ops.masked_point_pool(*a)[0], (features, masks, owner, points), (0,)
    )


@pytest.mark.parametrize(("size", "scale"), [((70, 300), 1), ((70, 130), 2), ((23, 91), 3)])
def test_mask_iou(emulation: str, size: tuple[int, int], scale: int) -> None:
    """More targets of an image than lanes, two tiles of queries, two bands of rows, more words in a
    row than warps."""
    predictions, targets, _ = cases.mask_iou(cases.IouShape(2, 9, size, scale, 70), torch.float64)
    owner = torch.arange(70) % 2
    with cases.using(emulation, "any"):
        found = ops.mask_iou(predictions, targets, owner)
    assert torch.equal(found, ops.mask_iou(predictions, targets, owner))
    assert found.max() > 0.2


@pytest.mark.parametrize("size", [(300, 13), (33, 210)])
def test_mask_rle(emulation: str, size: tuple[int, int]) -> None:
    """Several blocks of columns, whose last is not full; more columns than lanes; many words."""
    shape = cases.RleShape(5, (20, 30), size, (80, 120), (77, 111))
    logits = cases.mask_rle(shape, torch.float64)
    with cases.using(emulation, "any"):
        found = ops.mask_rle(logits, *shape.sizes)
    for a, b in zip(found, ops.mask_rle(logits, *shape.sizes), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert found[2].min() > 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_mask_points(emulation: str, dtype: torch.dtype) -> None:
    """Several rounds of candidates, of fresh points, of gradients and of pixels."""
    *tensors, count, seed = cases.mask_points(
        cases.PointsShape(3, (40, 24), (90, 70), 2, 2600), dtype
    )
    check(emulation, lambda *t: ops.mask_points(*t, count, seed)[0], tensors, (0,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("C", [80, 133])
def test_quality_focal_loss(emulation: str, C: int, dtype: torch.dtype) -> None:
    """Two blocks of rows, several rounds of classes."""
    arguments = cases.quality_focal_loss(cases.LossShape(45, C), dtype)
    check(emulation, ops.quality_focal_loss, arguments, (0,))


def far(tensor: Tensor) -> Tensor:
    """The same numbers, with 2^31 elements between those of the first and the second image;
    untouched pages take no memory."""
    shape, strides = tensor.shape, tensor.contiguous().stride()
    memory = torch.from_numpy(np.zeros(2**31 + strides[0], dtype=np.float16))
    spread = memory.as_strided(shape, (2**31, *strides[1:]))
    return spread.copy_(tensor)


@pytest.mark.slow
@pytest.mark.parametrize("D", [16, 5])
def test_more_than_two_to_the_31_elements(D: int) -> None:
    """Offsets of 64 bits, in the fast paths and in those for any layout, reading and writing."""
    shape = cases.DeformShape(2, ((3, 4), (2, 2)), 2, D, 3, 2)
    value, levels, locations, weights = cases.ms_deform_attn(shape, dtype=torch.float16)
    sizes = [size for level in levels for size in level]
    grad = torch.randn(2, 3, 2 * D, generator=torch.Generator().manual_seed(0)).half()
    features, masks, owner, points = cases.masked_point_pool(
        cases.PoolShape(2, 8 if D == 16 else 5, (5, 4), (7, 9), 4, 2, 40), dtype=torch.float16
    )
    features = features.permute(0, 2, 3, 1)
    predictions, targets, owner_iou = cases.mask_iou(
        cases.IouShape(2, 3, (3, 16), 1, 4), torch.float16
    )
    results = []
    for spread in (far, torch.Tensor.contiguous):
        out, grad_value = spread(torch.zeros_like(grad)), spread(torch.zeros_like(value))
        _simt.ms_deform_attn_forward(out, spread(value), sizes, spread(locations), spread(weights))
        call = (grad_value, None, None, spread(grad), spread(value), sizes, locations, weights)
        workspace = torch.empty(_simt.ms_deform_attn_backward_workspace(*call), dtype=torch.uint8)
        _simt.ms_deform_attn_backward(*call, workspace=workspace)
        pooled, weight = torch.empty(4, 2, features.shape[-1]).half(), torch.empty(4, 2)
        pool = (spread(features).permute(0, 3, 1, 2), masks, owner, spread(points))
        _simt.masked_point_pool_forward(pooled, weight, *pool)
        iou = torch.empty(4, 3)
        given = (iou, spread(predictions), targets, owner_iou)
        workspace = torch.empty(_simt.mask_iou_forward_workspace(*given), dtype=torch.uint8)
        _simt.mask_iou_forward(*given, workspace=workspace)
        results.append((out, grad_value, pooled, weight, iou))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert b.abs().max() > 0
