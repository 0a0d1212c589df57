"""Mask logits as run lengths at the image's size: public function, operators.

Shapes: N masks, h x w logits, H x W pixels of the image, R counts of all masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.mask_rle import check, resolve


@accepts_arrays
def mask_rle(
    logits_NHW: Tensor,
    size: Sequence[int],
    padded: Sequence[int] | None = None,
    valid: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Masks at an image's size as COCO's run lengths, without a mask of that size in memory.

    The logits are resized to `padded`, cut off at `valid` and resized to `size`, each as by
    `F.interpolate(mode="bilinear", align_corners=False)`; what is above 0 is the mask. A logit
    within rounding of 0 may fall on either side. NaN is background, and infinite logits make NaN of
    some of their neighbours, as in `F.interpolate`.

    How many counts there are depends on the logits. So under torch.compile the graph breaks here,
    and meta tensors are refused; the operators `torch.ops.alignmask.mask_rle` (everything but the
    counts) and `torch.ops.alignmask.mask_rle_counts` have fixed sizes and do neither.

    Args:
        logits_NHW: Mask logits. fp64, fp32, fp16 or bf16.
        size: Height and width of the image, less than 2^31 pixels. No side of it or of the others
            may have more than 2^24.
        padded: Height and width of the network's input, of which the logits are a smaller map; None
            stands for `size`.
        valid: The upper left part of it that shows the image; None stands for all of it.

    Returns:
        counts_R: int32: the lengths of the runs of all masks, one mask after the other; down the
            columns, zeros first.
        offsets: int64 [N + 1]: mask n has counts[offsets[n] : offsets[n + 1]].
        area_N: int64.
        box_N4: int64: x1, y1, x2, y2 around the mask, with x2 and y2 past the last pixel; zeros for
            an empty mask.
        probability_N: The mean of sigmoid(logit) inside the mask, 0 for an empty one. float32
            (float64 for float64 logits). None of the five has a gradient.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, a side below 1 or beyond 2^24, or a `valid` beyond `padded`.
    """
    _check.tensors("mask_rle", logits=logits_NHW)
    if not _library.has_kernel("mask_rle", logits_NHW.device):
        return reference.mask_rle(logits_NHW, size, padded, valid)
    pairs = resolve(size, padded, valid)
    check(logits_NHW, *pairs)
    sizes = [side for pair in pairs for side in pair]
    logits_NHW = logits_NHW.detach()
    runs_NW, area_N, box_N4, probability_N = _forward(logits_NHW, sizes)
    ends_NW = runs_NW.flatten().cumsum(0).view(runs_NW.shape)
    offsets = torch.cat((ends_NW.new_zeros(1), ends_NW[:, -1]))
    counts_R = _counts(logits_NHW, sizes, ends_NW, int(offsets[-1]))
    return counts_R, offsets, area_N, box_N4, probability_N


def _forward_kernel(logits: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _empty(logits, sizes)
    _library.core.mask_rle_forward(
        *outputs,
        logits,
        *sizes,
        torch.get_num_threads(),
        _library.workspace(logits),
        _library.stream(logits),
    )
    return outputs


def _forward_fake(logits: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(logits, *_pairs(sizes))
    return _empty(logits, sizes)


def _empty(logits: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """runs, area, box and probability, to be written."""
    N, W = logits.shape[0], sizes[1]
    return (
        logits.new_empty((N, W), dtype=torch.int32),
        logits.new_empty(N, dtype=torch.int64),
        logits.new_empty((N, 4), dtype=torch.int64),
        logits.new_empty(N, dtype=_check.compute_dtype(logits.dtype)),
    )


def _counts_kernel(logits: Tensor, sizes: list[int], ends: Tensor, total: int) -> Tensor:
    counts = logits.new_empty(total, dtype=torch.int32)
    _library.core.mask_rle_counts_forward(
        counts,
        ends,
        logits,
        *sizes,
        torch.get_num_threads(),
        _library.workspace(logits),
        _library.stream(logits),
    )
    return counts


def _counts_fake(logits: Tensor, sizes: list[int], ends: Tensor, total: int) -> Tensor:
    check(logits, *_pairs(sizes))
    return logits.new_empty(total, dtype=torch.int32)


def _pairs(sizes: list[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


_forward = _library.define(
    "mask_rle",
    "(Tensor logits, SymInt[] sizes) -> (Tensor, Tensor, Tensor, Tensor)",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
)
_counts = _library.define(
    "mask_rle_counts",
    "(Tensor logits, SymInt[] sizes, Tensor ends, SymInt total) -> Tensor",
    kernels={"cpu": _counts_kernel, "cuda": _counts_kernel},
    fake=_counts_fake,
)
