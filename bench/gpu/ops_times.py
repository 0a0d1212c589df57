"""Times of the ops at the paper's shapes: 4 images of 1024 x 1024, in the layouts that occur.

Three numbers for each: `graph ms`, the device alone; `loop ms`, many calls in a row; `host us`,
what asking for a call costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from common import (
    DEVICE,
    GPU,
    SIDE,
    B,
    Results,
    attention,
    generator,
    loop_ms,
    masks,
    smooth_maps,
    times_of,
)
from torch import Tensor

from alignmask import ops
from tests.loss import pointrend
from tests.ops import cases

try:
    from pycocotools import mask as mask_utils
except ImportError:  # the job that needs it says so
    mask_utils = None

HALF_SIDE = SIDE // 4
"""Of the pixel embedding and of predicted masks."""
QUERIES, MASKS, SETS, POINTS, OUTPUTS, CLASSES = (
    (200, 20, 5, 12544, 10, 80) if GPU else (9, 2, 2, 30, 2, 5)
)

Job = tuple[str, Callable[[], Any]]


def short_name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def memory() -> Iterator[Job]:
    """What a copy and torch's own atomics reach here."""
    size = 1 << (30 if GPU else 16)

    def copy() -> dict[str, float]:
        source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        ms = loop_ms(lambda: target.copy_(source))
        return {"loop ms": ms, "GB/s": 2 * size / ms / 1e6}

    def index_add() -> dict[str, float]:
        rows, count = 1 << (21 if GPU else 8), 1 << (21 if GPU else 8)
        total = torch.zeros(rows, 32, device=DEVICE)
        index = torch.randint(0, rows, (count,), device=DEVICE, generator=generator())
        ones = torch.ones(count, 32, device=DEVICE)
        return {"loop ms": loop_ms(lambda: total.index_add_(0, index, ones))}

    yield "copy of 1 GiB", copy
    yield "torch index_add_ of 2 Mi rows of 32 floats (atomics)", index_add


def deformable_attention(dtype: torch.dtype, spread: float) -> Iterator[Job]:
    def run(*needed: str, deterministic: bool = False) -> dict[str, Any]:
        value, levels, reference, offsets, logits = attention(dtype, spread)
        tensors = {"value": value, "offsets": offsets, "logits": logits}
        for name in needed:
            tensors[name].requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            return times_of(
                lambda: ops.ms_deform_attn_from_offsets(value, levels, reference, offsets, logits),
                tuple(tensors[name] for name in needed),
            )
        finally:
            torch.use_deterministic_algorithms(False)

    name = f"ms_deform_attn_from_offsets {short_name(dtype)} spread {spread:g}"
    yield name, lambda: run("value", "offsets", "logits")
    if spread == 2:
        yield f"{name}, value without gradient (no atomics)", lambda: run("offsets", "logits")
        yield (
            f"{name}, deterministic",
            lambda: run("value", "offsets", "logits", deterministic=True),
        )


def pooling(dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Job]:
    def run() -> dict[str, Any]:
        features = torch.randn(B, 256, HALF_SIDE, HALF_SIDE, device=DEVICE, generator=generator())
        features = features.to(dtype).contiguous(memory_format=layout).requires_grad_()
        instances, owner = masks(MASKS * B, SIDE), torch.arange(MASKS * B, device=DEVICE) % B
        where = torch.rand(B, SETS, POINTS, 2, device=DEVICE, generator=generator())
        return times_of(
            lambda: ops.masked_point_pool(features, instances, owner, where)[0], (features,)
        )

    yield (
        f"masked_point_pool {short_name(dtype)} "
        f"{'NHWC' if layout == torch.channels_last else 'NCHW'}",
        run,
    )


def iou(dtype: torch.dtype, scale: int, smooth: bool) -> Iterator[Job]:
    def run() -> dict[str, Any]:
        size = (B, QUERIES, HALF_SIDE, HALF_SIDE)
        noise = partial(torch.randn, device=DEVICE, generator=generator())
        predictions = (smooth_maps if smooth else noise)(*size).to(dtype)
        targets, owner = (
            masks(MASKS * B, HALF_SIDE * scale),
            torch.arange(MASKS * B, device=DEVICE) % B,
        )
        return times_of(lambda: ops.mask_iou(predictions, targets, owner))

    yield f"mask_iou {short_name(dtype)} x{scale} {'smooth' if smooth else 'noise'}", run


def mask_points(dtype: torch.dtype) -> Iterator[Job]:
    """The positive rows of a step: 7 instances and 35 aligned queries an image, ten outputs."""
    rows = OUTPUTS * B * (42 if GPU else 2)

    def given() -> tuple[Tensor, Tensor, Tensor]:
        logits = 5 * smooth_maps(rows, HALF_SIDE, HALF_SIDE).to(dtype)
        return logits, masks(7 * B, SIDE), torch.arange(rows, device=DEVICE) % (7 * B)

    def run() -> dict[str, Any]:
        logits, targets, index = given()
        logits.requires_grad_()
        return times_of(lambda: ops.mask_points(logits, targets, index, POINTS, 1)[0], (logits,))

    def composed() -> dict[str, Any]:
        logits, targets, index = given()
        logits.requires_grad_()
        return times_of(lambda: pointrend.composed(logits, targets, index, POINTS)[0], (logits,))

    yield f"mask_points {short_name(dtype)}", run
    if dtype == torch.float32:
        yield "mask_points float32, plain torch (grid_sample, topk)", composed


def mask_rle(smooth: bool) -> Iterator[Job]:
    """100 masks of 256 x 256 at 1024 x 1024; every call waits for the number of runs."""
    shape = cases.MASK_RLE["1024x1024" if GPU else "odd"]

    def run() -> dict[str, Any]:
        logits = cases.mask_rle(shape, smooth=smooth).to(DEVICE)
        return {"forward": {"loop ms": loop_ms(lambda: ops.mask_rle(logits, *shape.sizes))}}

    def composed() -> dict[str, Any]:
        logits = cases.mask_rle(shape, smooth=smooth).to(DEVICE)

        def call() -> Any:
            full = torch.nn.functional.interpolate(logits[None], size=shape.size, mode="bilinear")
            dense = np.asfortranarray((full[0] > 0).byte().cpu().numpy().transpose(1, 2, 0))
            return mask_utils.encode(dense)

        return {"forward": {"loop ms": loop_ms(call, calls=2)}}

    yield f"mask_rle float32 {'smooth' if smooth else 'noise'}", run
    if smooth:
        yield "mask_rle float32 smooth, plain torch and pycocotools", composed


def loss(dtype: torch.dtype) -> Iterator[Job]:
    def run() -> dict[str, Any]:
        rows = OUTPUTS * B * QUERIES
        logits = (
            torch.randn(rows, CLASSES, device=DEVICE, generator=generator())
            .to(dtype)
            .requires_grad_()
        )
        label = torch.randint(-1, CLASSES, (rows,), device=DEVICE, generator=generator())
        quality = torch.rand(rows, device=DEVICE, generator=generator()).to(dtype)
        return times_of(lambda: ops.quality_focal_loss(logits, label, quality), (logits,))

    yield f"quality_focal_loss {short_name(dtype)}", run


def plain_torch() -> Iterator[Job]:
    """For the same work as above, eager."""

    def run() -> dict[str, Any]:
        given = attention(torch.float32)

        def forward() -> Tensor:
            with ops.use_reference():
                return ops.ms_deform_attn_from_offsets(*given)

        return {"forward": {"loop ms": loop_ms(forward, calls=2)}}

    yield "ms_deform_attn_from_offsets float32 spread 2, plain torch", run


def jobs() -> Iterator[Job]:
    """By worth: what comes last may find no time."""
    single, half, other = torch.float32, torch.bfloat16, torch.float16
    yield from memory()
    for dtype in (single, half):
        yield from deformable_attention(dtype, 2.0)
        for layout in (torch.channels_last, torch.contiguous_format):
            yield from pooling(dtype, layout)
        for scale, smooth in ((4, True), (4, False), (1, True)):
            yield from iou(dtype, scale, smooth)
        yield from mask_points(dtype)
        yield from loss(dtype)
    for smooth in (True, False):
        yield from mask_rle(smooth)
    yield from deformable_attention(other, 2.0)
    for dtype in (single, half):
        yield from deformable_attention(dtype, 8.0)
    yield from plain_torch()


if __name__ == "__main__":
    results = Results("bench")
    results["device"] = torch.cuda.get_device_name() if GPU else "cpu"
    results["implementation"] = ops.implementation("ms_deform_attn", DEVICE)
    for name, run in jobs():
        results.attempt(name, run)
