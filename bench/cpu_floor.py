"""How far the CPU kernels are from this machine's limits: bytes and operations counted, bandwidth
and rate measured.

The floor of a call is the longer of two times: its compulsory memory traffic (every input read and
every output written once) at the bandwidth of a triad, and its arithmetic at the rate of a matrix
product. One thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench_masked_point_pool import SHAPE as POOL
from harness import cases, cpu_name

from alignmask import ops

MB, GFLOP = 1e6, 1e9


class Case(NamedTuple):
    name: str
    megabytes: float
    gigaflops: float
    call: Callable[[], Any]


def median(call: Callable[[], Any], turns: int = 9) -> float:
    call()
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def bandwidth() -> float:
    """Bytes per second of a = b + s c on arrays far larger than the caches, written memory read
    first."""
    a, b, c = (torch.ones(1 << 25) for _ in range(3))
    return 4 * a.nbytes / median(lambda: torch.add(b, c, alpha=2, out=a))


def rate() -> float:
    """Multiply-adds, as two operations each, per second of a 1024 x 1024 float32 matrix product."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    return 2 * 1024**3 / median(lambda: a @ b)


def all_cases() -> list[Case]:
    shape = cases.encoder(1024)
    value, levels, _, weights = cases.ms_deform_attn(shape)
    locations = cases.encoder_locations(shape, torch.Generator().manual_seed(0))
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    grad = torch.ones(1, shape.Q, shape.N * shape.D)
    # Of a channel, four multiply-adds each.
    samples = shape.Q * shape.N * len(levels) * shape.P * shape.D
    inputs = value.nbytes + locations.nbytes + weights.nbytes

    features, masks, owner, points = cases.masked_point_pool(POOL)
    features = features.contiguous(memory_format=torch.channels_last)
    leaf = features.clone().requires_grad_()
    # The samples alone; masks hit about half the points.
    pooled_flops = 8 * POOL.B * POOL.T * POOL.K * POOL.C

    predictions, targets, image = cases.mask_iou(cases.IouShape(1, 100, (1024, 1024), 1, 15))
    low, low_targets, low_image = cases.mask_iou(cases.IouShape(1, 100, (256, 256), 4, 15))
    logits, label, iou = cases.quality_focal_loss(cases.LossShape(4000, 80))
    logits = logits.requires_grad_()
    return [
        Case(
            "ms_deform_attn 1024x1024 forward",
            (inputs + grad.nbytes) / MB,
            8 * samples / GFLOP,
            lambda: ops.ms_deform_attn(value, levels, locations, weights),
        ),
        Case(
            "ms_deform_attn 1024x1024 forward + backward",
            (3 * inputs + 2 * grad.nbytes) / MB,  # read twice, gradients written once
            24 * samples / GFLOP,
            lambda: torch.autograd.grad(
                ops.ms_deform_attn(leaves[0], levels, *leaves[1:]), leaves, grad
            ),
        ),
        Case(
            "masked_point_pool channels-last forward",
            (features.nbytes + masks.nbytes + points.nbytes) / MB,
            pooled_flops / GFLOP,
            lambda: ops.masked_point_pool(features, masks, owner, points),
        ),
        Case(
            "masked_point_pool channels-last forward + backward",
            (2 * features.nbytes + 2 * masks.nbytes + 2 * points.nbytes) / MB,
            2 * pooled_flops / GFLOP,
            lambda: torch.autograd.grad(
                ops.masked_point_pool(leaf, masks, owner, points)[0].sum(), leaf
            ),
        ),
        Case(
            "mask_iou 1024x1024",
            (predictions.nbytes + targets.nbytes) / MB,
            0,
            lambda: ops.mask_iou(predictions, targets, image),
        ),
        Case(
            "mask_iou 256x256 upsampled to 1024x1024",
            (low.nbytes + low_targets.nbytes) / MB,
            3 * 100 * 1024**2 / GFLOP,
            lambda: ops.mask_iou(low, low_targets, low_image),
        ),
        Case(
            "quality_focal_loss 4000 x 80 forward + backward",
            3 * logits.nbytes / MB,
            # An exponential, a logarithm, two divisions and what joins them.
            60 * logits.numel() / GFLOP,
            lambda: torch.autograd.grad(ops.quality_focal_loss(logits, label, iou).sum(), logits),
        ),
    ]


def main() -> None:
    torch.set_num_threads(1)
    bytes_per_second, flops = bandwidth(), rate()
    print(
        f"{cpu_name()}: triad {bytes_per_second / 1e9:.1f} GB/s, sgemm {flops / 1e9:.0f} GFLOP/s, "
        "one thread"
    )
    print(f"{'':<52}{'MB':>8}{'GFLOP':>8}{'floor ms':>10}{'measured':>10}{'reached':>9}")
    for case in all_cases():
        floor = max(case.megabytes * MB / bytes_per_second, case.gigaflops * GFLOP / flops)
        seconds = median(case.call)
        print(
            f"{case.name:<52}{case.megabytes:8.1f}{case.gigaflops:8.2f}{1e3 * floor:10.2f}{1e3 * seconds:10.2f}"
            f"{floor / seconds:9.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
