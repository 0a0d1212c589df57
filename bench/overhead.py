"""What a call costs beside the work: every op on next to nothing, through torch and straight into
the compiled module.

    python bench/overhead.py [--device cuda]

Processor time of this process, so that a busy machine disturbs little: the best of many turns. On a
GPU the time until the launches are enqueued, and the wall clock's. "nothing" is a
torch.autograd.Function that computes nothing, of as many tensors: what torch itself takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness import cases
from torch import Tensor

from alignmask import _core, ops

CALLS, TURNS = 200, 25


class Call(NamedTuple):
    """An op of tensors, of which the first `leaves` have gradients, and the same in the compiled
    module (on the CPU)."""

    op: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    leaves: int
    compiled: Callable[[], Any]


def microseconds(call: Callable[[], Any], device: str) -> float:
    """Per call: the least over turns of many calls."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    call()
    times = []
    for _ in range(TURNS):
        began = clock()
        for _ in range(CALLS):
            call()
        times.append((clock() - began) / CALLS)
        if device != "cpu":
            torch.cuda.synchronize()
    return 1e6 * min(times)


def calls() -> dict[str, Call]:
    shape = cases.DeformShape(1, ((1, 1),) * 3, 1, 8, 1, 4)
    value, levels, locations, weights = cases.ms_deform_attn(shape)
    _, _, reference, offsets, logits = cases.ms_deform_attn_from_offsets(shape)
    out, flat = torch.empty(1, 1, 8), [size for level in levels for size in level]
    features, masks, owner, points = cases.masked_point_pool(
        cases.PoolShape(1, 8, (1, 1), (1, 1), 1, 1, 1)
    )
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    predictions, targets, image = cases.mask_iou(cases.IouShape(1, 1, (1, 1), 1, 1))
    iou = ops.mask_iou(predictions, targets, image)
    scores, label, quality = cases.quality_focal_loss(cases.LossShape(1, 1))
    loss = ops.quality_focal_loss(scores, label, quality)
    pixel, instance = torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    sampled = ops.mask_points(pixel, instance, image, 1, 0)
    return {
        "ms_deform_attn": Call(
            lambda v, *points: ops.ms_deform_attn(v, levels, *points),
            (value, locations, weights),
            3,
            lambda: _core.ms_deform_attn_forward(out, value, flat, locations, weights, 1),
        ),
        "... from_offsets": Call(
            lambda v, *points: ops.ms_deform_attn_from_offsets(v, levels, *points),
            (value, reference, offsets, logits),
            4,
            lambda: _core.ms_deform_attn_forward(out, value, flat, offsets, logits, 1, reference),
        ),
        "masked_point_pool": Call(
            lambda *given: ops.masked_point_pool(*given)[0],
            (features, masks, owner, points),
            1,
            lambda: _core.masked_point_pool_forward(
                pooled, weight, features, masks, owner, points, False, 1
            ),
        ),
        "mask_iou": Call(
            ops.mask_iou,
            (predictions, targets, image),
            0,
            lambda: _core.mask_iou_forward(iou, predictions, targets, image, 0.0, 1),
        ),
        "mask_points": Call(
            lambda x, *rest: ops.mask_points(x, *rest, 1, 0)[0],
            (pixel, instance, image),
            1,
            lambda: _core.mask_points_forward(*sampled, pixel, instance, image, 0, 3, 0, 1),
        ),
        "quality_focal_loss": Call(
            ops.quality_focal_loss,
            (scores, label, quality),
            1,
            lambda: _core.quality_focal_loss_forward(
                loss, None, scores, label, quality, 2.0, 0.5, 1
            ),
        ),
    }


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*leaves)
        return leaves[0].detach()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in ctx.saved_tensors)


def with_gradient(op: Callable[..., Tensor], call: Call, device: str) -> tuple[float, float]:
    """Forward alone, and with backward."""
    tensors = [
        tensor.to(device).requires_grad_(i < call.leaves) for i, tensor in enumerate(call.tensors)
    ]
    leaves, ones = tensors[: call.leaves], torch.ones_like(op(*tensors))
    forward = microseconds(lambda: op(*tensors), device)
    return forward, microseconds(lambda: torch.autograd.grad(op(*tensors), leaves, ones), device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    columns = (
        "compiled module",
        "forward",
        "kept for backward",
        "with backward",
        "nothing",
        "nothing, backward",
    )
    print("| µs a call | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, call in calls().items():
        tensors = [tensor.to(device) for tensor in call.tensors]
        with torch.no_grad():
            row = [
                microseconds(call.compiled, "cpu"),
                microseconds(lambda c=call, t=tensors: c.op(*t), device),
            ]
        if call.leaves:
            row += with_gradient(call.op, call, device)
            row += with_gradient(lambda *t, c=call: Nothing.apply(*t[: c.leaves]), call, device)
        print(
            f"| {name} | "
            + " | ".join([f"{time:.1f}" for time in row] + [""] * (len(columns) - len(row)))
            + " |"
        )


if __name__ == "__main__":
    main()
