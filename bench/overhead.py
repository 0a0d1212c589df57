"""What a call costs beside the work: every op on next to nothing, through torch and straight into the compiled module."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import cases

from alignmask import _core, ops

CALLS, TURNS = 500, 7


def microseconds(call: Callable[[], Any]) -> float:
    """Per call: the median over turns of many calls."""
    call()
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - began) / CALLS)
    return 1e6 * statistics.median(times)


def pairs() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Op -> call through torch, and the same in the compiled module."""
    value, levels, locations, weights = cases.ms_deform_attn(cases.DeformShape(1, ((1, 1),), 1, 8, 1, 4))
    out, flat = torch.empty(1, 1, 8), [size for level in levels for size in level]
    features, masks, owner, points = cases.masked_point_pool(cases.PoolShape(1, 8, (1, 1), (1, 1), 1, 1, 1))
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    predictions, targets, image = cases.mask_iou(cases.IouShape(1, 1, (1, 1), 1, 1))
    iou = ops.mask_iou(predictions, targets, image)
    logits, label, quality = cases.quality_focal_loss(cases.LossShape(1, 1))
    loss = ops.quality_focal_loss(logits, label, quality)
    return {
        "ms_deform_attn": (
            lambda: ops.ms_deform_attn(value, levels, locations, weights),
            lambda: _core.ms_deform_attn_forward(out, value, flat, locations, weights, 1),
        ),
        "masked_point_pool": (
            lambda: ops.masked_point_pool(features, masks, owner, points),
            lambda: _core.masked_point_pool_forward(pooled, weight, features, masks, owner, points, False, 1),
        ),
        "mask_iou": (
            lambda: ops.mask_iou(predictions, targets, image),
            lambda: _core.mask_iou_forward(iou, predictions, targets, image, 0.0, 1),
        ),
        "quality_focal_loss": (
            lambda: ops.quality_focal_loss(logits, label, quality),
            lambda: _core.quality_focal_loss_forward(loss, None, logits, label, quality, 2.0, 0.5, 1),
        ),
    }


def main() -> None:
    print(f"{'µs per call':<20}{'op':>8}{'compiled module':>17}{'difference':>12}")
    for op, (through_torch, raw) in pairs().items():
        with torch.no_grad():
            slow, fast = microseconds(through_torch), microseconds(raw)
        print(f"{op:<20}{slow:8.1f}{fast:17.1f}{slow - fast:12.1f}")


if __name__ == "__main__":
    main()
