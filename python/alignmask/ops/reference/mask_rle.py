"""Mask logits as run lengths at the image's size.

Shapes: N masks, h x w logits, H x W pixels of the image, R counts of all masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision

_CHUNK_PIXELS = 16 * 2**20  # that are upsampled at once; several copies exist
LONGEST_SIDE = 2**24
Size = tuple[int, int]


def check(logits: Tensor, size: Size, padded: Size, valid: Size) -> None:
    """Raise TypeError or ValueError unless dtype and sizes obey the contract of
    `alignmask.ops.mask_rle`."""
    op = "mask_rle"
    sizes = _check.bind(op, logits=(logits, "Nhw", _check.FLOATS))
    named = {"logits": (sizes["h"], sizes["w"]), "size": size, "padded": padded, "valid": valid}
    for name, (height, width) in named.items():
        if height < 1 or width < 1:
            raise ValueError(
                f"{op}: {name} must be of 1 pixel or more a side, got ({height}, {width})"
            )
        if max(height, width) > LONGEST_SIDE:
            raise ValueError(
                f"{op}: {name} ({height}, {width}) has a side of more than 2^24 pixels, whose places "
                "float32 cannot tell apart"
            )
    if valid[0] > padded[0] or valid[1] > padded[1]:
        raise ValueError(
            f"{op}: valid ({valid[0]}, {valid[1]}) must lie within padded ({padded[0]}, {padded[1]})"
        )
    if size[0] * size[1] >= 2**31:
        raise ValueError(
            f"{op}: size ({size[0]}, {size[1]}) has 2^31 pixels or more, which a count cannot hold"
        )


def resolve(
    size: Sequence[int], padded: Sequence[int] | None, valid: Sequence[int] | None
) -> tuple[Size, Size, Size]:
    """The three sizes, checked to be pairs of ints; what is left out is the size before."""
    padded = size if padded is None else padded
    valid = padded if valid is None else valid
    for name, value in (("size", size), ("padded", padded), ("valid", valid)):
        _check.pairs("mask_rle", name, [value])  # type: ignore[list-item]
    return (size[0], size[1]), (padded[0], padded[1]), (valid[0], valid[1])


@in_full_precision
def mask_rle(
    logits_NHW: Tensor,
    size: Sequence[int],
    padded: Sequence[int] | None = None,
    valid: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `alignmask.ops.mask_rle`."""
    image, padded, valid = resolve(size, padded, valid)
    check(logits_NHW, image, padded, valid)
    logits_NHW = logits_NHW.detach()
    dtype = _check.compute_dtype(logits_NHW.dtype)
    step = max(1, _CHUNK_PIXELS // max(padded[0] * padded[1], image[0] * image[1]))
    counts, number_N, area_N, box_N4, probability_N = [], [], [], [], []
    for part_NHW in logits_NHW.split(step):
        for full_HW in _full_size(part_NHW.to(dtype), image, padded, valid):
            mask_HW = full_HW > 0
            counts.append(_runs(mask_HW))
            number_N.append(len(counts[-1]))
            area_N.append(int(mask_HW.sum()))
            box_N4.append(_box(mask_HW))
            inside = full_HW[mask_HW].sigmoid().sum(dtype=torch.float64) / max(area_N[-1], 1)
            probability_N.append(inside.to(dtype))

    def of_ints(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=logits_NHW.device)

    none = logits_NHW.new_empty(0)
    return (
        torch.cat(counts) if counts else none.int(),
        of_ints([0, *number_N]).cumsum(0),
        of_ints(area_N),
        of_ints(box_N4).view(-1, 4),
        torch.stack(probability_N) if probability_N else none.to(dtype),
    )


def _full_size(logits_NHW: Tensor, size: Size, padded: Size, valid: Size) -> Tensor:
    full = logits_NHW[:, None]
    if full.shape[2:] != padded:
        full = F.interpolate(full, size=padded, mode="bilinear", align_corners=False)
    full = full[..., : valid[0], : valid[1]]
    if valid != size:
        full = F.interpolate(full, size=size, mode="bilinear", align_corners=False)
    return full[:, 0]


def _runs(mask_HW: Tensor) -> Tensor:
    """Lengths of the runs down the columns, zeros first; int32."""
    down = mask_HW.T.flatten()
    before = torch.cat((down.new_zeros(1), down[:-1]))
    changes = (down != before).nonzero().flatten()
    ends = torch.cat((changes, changes.new_tensor([len(down)])))
    return ends.diff(prepend=ends.new_zeros(1)).int()


def _box(mask_HW: Tensor) -> list[int]:
    rows, columns = (mask_HW.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows else [0, 0, 0, 0]
