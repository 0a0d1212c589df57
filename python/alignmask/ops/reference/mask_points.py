"""Points for mask losses, as PointRend draws them in training, with logits and targets there.

Shapes: R rows, H x W logits, G masks of h x w, K points, M candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.ops import _check
from alignmask.ops._precision import in_full_precision

ROWS = 128
"""Number of rows to process at once. It bounds the memory of their candidates."""


def check(logits: Tensor, masks: Tensor, index: Tensor) -> None:
    """Raise TypeError or ValueError unless dtypes and sizes obey the contract of
    `alignmask.ops.mask_points`."""
    _check.bind(
        "mask_points",
        logits=(logits, "RHW", _check.FLOATS),
        index=(index, "R", _check.INTS),
        masks=(masks, "Ghw", _check.MASKS),
    )


def check_numbers(points: int, seed: int, oversample: float, importance: float) -> None:
    """Raise ValueError unless the numbers obey the contract."""
    op = "mask_points"
    if points < 0:
        raise ValueError(f"{op}: points must be at least 0, got {points}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must fit in 64 bits, got {seed}")
    if not 0 <= importance <= 1:
        raise ValueError(f"{op}: importance must be in [0, 1], got {importance}")
    if not importance <= oversample < float("inf"):
        raise ValueError(
            f"{op}: oversample must be finite and at least importance = {importance}, got "
            f"{oversample}"
        )


def counts(points: int, oversample: float, importance: float) -> tuple[int, int]:
    """-> M, and the number of candidates that are kept."""
    return int(points * oversample), int(points * importance)


@in_full_precision
def mask_points(
    logits_RHW: Tensor,
    masks_GHW: Tensor,
    index_R: Tensor,
    points: int,
    seed: int,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `alignmask.ops.mask_points`."""
    check(logits_RHW, masks_GHW, index_R)
    check_numbers(points, seed, oversample, importance)
    _check.in_range("mask_points", "index", index_R, 0, len(masks_GHW))
    candidates, kept = counts(points, oversample, importance)
    dtype = _check.compute_dtype(logits_RHW.dtype)
    parts = []
    for first in range(0, max(len(logits_RHW), 1), ROWS):
        maps_RHW, own_R = logits_RHW[first : first + ROWS].to(dtype), index_R[first : first + ROWS]
        index_RI = torch.arange(candidates + points - kept, device=own_R.device)
        drawn_RI2 = draw(seed, first, len(own_R), index_RI).to(dtype)
        with torch.no_grad():
            distance_RM = sample(maps_RHW, drawn_RI2[:, :candidates]).abs()
        # A stable sort, unlike topk, takes the first of equals.
        nearest_RK = distance_RM.argsort(dim=1, stable=True)[:, :kept].sort(1).values
        chosen_RK2 = drawn_RI2.gather(1, nearest_RK[..., None].expand(-1, -1, 2))
        points_RK2 = torch.cat([chosen_RK2, drawn_RI2[:, candidates:]], 1)
        found_RK = sample(maps_RHW, points_RK2)
        targets_RK = sample(masks_GHW != 0, points_RK2, own_R)
        parts.append((found_RK.to(logits_RHW.dtype), targets_RK, points_RK2))
    logits_RK, targets_RK, points_RK2 = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits_RK, targets_RK, points_RK2


def draw(seed: int, first_row: int, rows: int, index_I: Tensor) -> Tensor:
    """-> [rows, I, 2] in float32: these candidates of the rows from `first_row` on."""
    row_R1 = torch.arange(first_row, first_row + rows, device=index_I.device)[:, None]
    words_RI4 = philox(seed, (index_I // 2).expand(rows, -1), row_R1.expand(-1, len(index_I)))
    odd_RI1 = (index_I % 2 == 1)[None, :, None]
    return (torch.where(odd_RI1, words_RI4[..., 2:], words_RI4[..., :2]) >> 8).float() / 2**24


def philox(seed: int, first: Tensor, second: Tensor) -> Tensor:
    """-> [..., 4]: Philox4x32-10 of the counter (first, second, 0, 0), its words as int64."""
    low = 2**32 - 1
    key = (seed & low, seed >> 32 & low)
    zero = torch.zeros_like(first)
    counter = (first & low, second & low, zero, zero)
    for _ in range(10):
        # Products wrap around; their halves are right nevertheless.
        p, q = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            (q >> 32 & low) ^ counter[1] ^ key[0],
            q & low,
            (p >> 32 & low) ^ counter[3] ^ key[1],
            p & low,
        )
        key = ((key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low)
    return torch.stack(counter, -1)


def sample(maps_MHW: Tensor, points_RK2: Tensor, index_R: Tensor | None = None) -> Tensor:
    """-> [R, K]: map `index_R[r]` (r itself, if not given) at the points of row r, which lie in [0,
    1).

    Every operation is rounded by itself, in the order in which the kernels have them: which
    candidates are nearest to 0 hangs on the last bit.
    """
    count, height, width = maps_MHW.shape
    padded_S = F.pad(maps_MHW, (1, 1, 1, 1)).flatten()
    if index_R is None:
        index_R = torch.arange(count, device=points_RK2.device)
    column_RK = points_RK2[..., 0] * width - 0.5
    row_RK = points_RK2[..., 1] * height - 0.5
    left_RK, top_RK = column_RK.floor(), row_RK.floor()
    x_part, y_part = column_RK - left_RK, row_RK - top_RK
    at_RK = (index_R[:, None].long() * (height + 2) + top_RK.long() + 1) * (width + 2)
    at_RK = at_RK + left_RK.long() + 1

    def pixel(offset: int) -> Tensor:
        return padded_S[at_RK + offset].to(points_RK2.dtype)

    upper_RK = pixel(0) + x_part * (pixel(1) - pixel(0))
    below = width + 2
    lower_RK = pixel(below) + x_part * (pixel(below + 1) - pixel(below))
    return upper_RK + y_part * (lower_RK - upper_RK)
