"""Mask IoU of upsampled predictions, to the last bit of every logit, by the CUDA kernels.

They blend along rows first, then between rows, without fused operations where the host runs them.
Upsampling by 4 goes by cells for 16 predictions and more: what they take for granted about
rounding, infinities and borders is put to the test.

Shapes: B images, Q predictions per image, h x w, G targets of H x W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alignmask import ops
from tests.ops import cases

pytestmark = pytest.mark.skipif(
    cases.EMULATIONS[0] not in cases.implementations("mask_iou"),
    reason="there is no SIMT runtime: `make simt`",
)


@pytest.fixture(params=cases.EMULATIONS)
def emulation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, "mask_iou"):
        yield request.param


def upsampled(logits: NDArray[Any], scale: int) -> NDArray[Any]:
    """[..., h, w] -> [..., h · scale, w · scale] in the precision of the logits."""
    if scale == 1:
        return logits
    number, (h, w) = logits.dtype.type, logits.shape[-2:]

    def position(phase: NDArray[Any]) -> NDArray[Any]:
        return (phase.astype(number) + number(0.5)) / number(scale) - number(0.5)

    x = np.arange(w * scale)
    part = position(x % scale)
    column = x // scale - (part < 0)
    part = np.where(part < 0, part + 1, part)
    left, right = logits[..., column.clip(0, w - 1)], logits[..., (column + 1).clip(0, w - 1)]
    rows = (1 - part) * left + part * right
    y = np.arange(h * scale)
    row = (y - scale // 2) // scale
    part = position(y - row * scale)[:, None]
    result = (1 - part) * rows[..., row.clip(0, h - 1), :] + part * rows[
        ..., (row + 1).clip(0, h - 1), :
    ]
    assert result.dtype == logits.dtype
    return result


@np.errstate(invalid="ignore", over="ignore")
def expected(predictions: Tensor, targets: Tensor, owner: Tensor, threshold: float = 0.0) -> Tensor:
    double = predictions.dtype == torch.float64
    logits = predictions.numpy() if double else predictions.float().numpy()
    masks = upsampled(logits, targets.shape[1] // logits.shape[2]) > logits.dtype.type(threshold)
    iou = np.zeros((len(targets), logits.shape[1]))
    for g, image in enumerate(owner.tolist()):
        both, either = (
            (f(masks[image], targets[g].numpy())).sum((1, 2))
            for f in (np.logical_and, np.logical_or)
        )
        iou[g] = both / np.maximum(either, 1)
    return torch.from_numpy(iou).to(torch.float64 if double else torch.float32)


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Most cells are uniform."""
    coarse = torch.randn(*shape[:2], 4, 4, generator=generator)
    return F.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=True)


def integers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Exact, and often at the threshold of 0."""
    return torch.randint(-1, 2, shape, generator=generator).float()


def tiny(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """So small that products lose digits; all of one sign in places."""
    return 2.0**-149 * torch.randint(-3, 9, shape, generator=generator)


def close_to(threshold: float, side: int = 1) -> Callable[..., Tensor]:
    """Logits a few units in the last place from the threshold, and rarely on the other side:
    rounding decides."""

    def logits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        steps = torch.randint(0, 3, shape, generator=generator)
        steps[torch.rand(shape, generator=generator) < 0.05] = -1
        return (torch.tensor(threshold).view(torch.int32) + side * steps.int()).view(torch.float32)

    return logits


def unusual(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Infinities, NaN and the largest numbers among positive and negative ones."""
    some = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, -3.4e38] + 12 * [1.0] + 12 * [-1.0])
    logits = some[torch.randint(len(some), shape, generator=generator)]
    return torch.where(smooth(shape, generator) > 0.3, logits.abs(), logits)


ULP = 2.0**-23
SIZES = [(5, 70), (1, 1), (1, 40), (40, 1), (9, 31), (3, 62)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "threshold"),
    [
        (noise, 0.0),
        (smooth, 0.0),
        (smooth, -0.4),
        (integers, 0.0),
        (integers, 1.0),
        (tiny, 0.0),
        (tiny, 3 * 2.0**-149),
        # Blending 1.75 + 7 ulp with itself loses the last unit, 1.75 + 1 ulp gains one.
        (close_to(1.75 + 6 * ULP), 1.75 + 6 * ULP),
        (close_to(1.75 + 1 * ULP, -1), 1.75 + 1 * ULP),
        (close_to(-1.75 - 2 * ULP, -1), -1.75 - 2 * ULP),
        (close_to(-1.75 - 7 * ULP), -1.75 - 7 * ULP),
        (unusual, 0.0),
        (unusual, 0.3),
        (unusual, math.inf),
        (unusual, -math.inf),
        (unusual, math.nan),
    ],
)
def test_by_cells(kind: Callable[..., Tensor], threshold: float, size: tuple[int, int]) -> None:
    """17 predictions, which make two tiles that overlap."""
    generator = torch.Generator().manual_seed(0)
    _, targets, owner = cases.mask_iou(cases.IouShape(2, 1, size, 4, 5))
    predictions = kind((2, 17, *size), generator)
    with cases.using("simt", "mask_iou"):
        found = ops.mask_iou(predictions, targets, owner, threshold)
    assert torch.equal(found, expected(predictions, targets, owner, threshold))


@pytest.mark.parametrize("scale", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", [noise, smooth, integers, close_to(0.4), unusual])
def test_other_factors(kind: Callable[..., Tensor], scale: int) -> None:
    _, targets, owner = cases.mask_iou(cases.IouShape(2, 1, (5, 13), scale, 5))
    predictions = kind((2, 17, 5, 13), torch.Generator().manual_seed(0))
    with cases.using("simt", "mask_iou"):
        found = ops.mask_iou(predictions, targets, owner, 0.4)
    assert torch.equal(found, expected(predictions, targets, owner, 0.4))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("kind", [noise, smooth])
def test_dtypes_and_orders(emulation: str, kind: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Several bands of rows, several words in a row, more blocks' worth of both than a block has
    warps."""
    _, targets, owner = cases.mask_iou(cases.IouShape(1, 1, (20, 150), 4, 3))
    predictions = kind((1, 16, 20, 150), torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(
        ops.mask_iou(predictions, targets, owner, 0.1), expected(predictions, targets, owner, 0.1)
    )


def test_more_targets_than_lanes() -> None:
    predictions, targets, _ = cases.mask_iou(cases.IouShape(2, 16, (6, 40), 4, 100))
    owner = (torch.arange(100) < 70).long()
    with cases.using("simt", "mask_iou"):
        assert torch.equal(
            ops.mask_iou(predictions, targets, owner), expected(predictions, targets, owner)
        )


def test_targets_at_the_border() -> None:
    """Only the outermost pixels are set, which lie in half cells."""
    predictions = smooth((1, 20, 9, 33), torch.Generator().manual_seed(2))
    targets = torch.zeros(4, 36, 132, dtype=torch.bool)
    targets[0, 0] = targets[1, -1] = targets[2, :, 0] = targets[3, :, -1] = True
    owner = torch.zeros(4, dtype=torch.long)
    with cases.using("simt", "mask_iou"):
        found = ops.mask_iou(predictions, targets, owner)
    assert torch.equal(found, expected(predictions, targets, owner))
    assert found.amax(1).min() > 0.01


@pytest.mark.parametrize("kind", [noise, smooth])
def test_strides(kind: Callable[..., Tensor]) -> None:
    """Predictions turned round, with memory between them; targets that are unaligned, turned,
    bytes."""
    shape = (1, 18, 4, 36)
    predictions = kind(shape, torch.Generator().manual_seed(3))
    turned = (
        torch.stack([predictions, -predictions], -1)
        .permute(3, 2, 1, 0, 4)
        .contiguous()
        .permute(3, 2, 1, 0, 4)[..., 0]
    )
    _, targets, owner = cases.mask_iou(cases.IouShape(1, 1, shape[2:], 4, 5))
    result = expected(predictions, targets, owner)
    unaligned = F.pad(targets, (1, 4))[..., 1:-4]
    assert unaligned.data_ptr() % 4
    with cases.using("simt", "mask_iou"):
        for masks in (
            unaligned,
            targets.mT.contiguous().mT,
            targets.byte() * 2,
            targets.byte() * 128,
        ):
            assert torch.equal(ops.mask_iou(turned, masks, owner), result)
