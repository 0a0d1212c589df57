"""The ops on a GPU: time by CUDA events, bytes per second, and their share of what a copy reaches; `make bench-gpu`.

Candidates take turns in one process: our kernels, the plain torch reference, the same compiled by torch.compile, and other
projects' kernels where they are installed. Without a GPU it says so; `--device cpu` goes through the motions.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import REPOSITORY, Result, Row, cases, environment, quartiles, write
from torch import Tensor

from alignmask import ops

Call = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """`bytes`: what must cross the memory's bus at least once."""

    op: str
    labels: dict[str, str]
    bytes: float
    call: Call
    peers: dict[str, Call] = field(default_factory=dict)


def milliseconds(call: Call, device: str) -> float:
    """Of one call, by CUDA events: the time on the device alone."""
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth(device: str, size: int) -> float:
    """GB/s of a copy within the device's memory: bytes read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source), device) for _ in range(12)]
    return 2 * size / statistics.median(times[2:]) / 1e6


def measure(
    job: Job, device: str, seconds: float, least: int = 10, compiled: bool = True
) -> tuple[Row, dict[str, str]]:
    """Turns of all candidates, after two warm-up calls each; and which failed, with their message."""

    def reference() -> Any:
        with ops.use_reference():
            return job.call()

    candidates: dict[str, Call] = {"kernel": job.call, "reference": reference}
    if compiled:
        compiled_call = torch.compile(job.call)

        def reference_compiled() -> Any:
            with ops.use_reference():
                return compiled_call()

        candidates["reference compiled"] = reference_compiled
    candidates |= job.peers
    failed: dict[str, str] = {}
    for name, call in list(candidates.items()):
        try:
            call(), call()
        except Exception as error:  # another project's kernel, or its build: said, not hidden
            if name in ("kernel", "reference"):
                raise
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            del candidates[name]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    while len(times["kernel"]) < least or time.perf_counter() - start < seconds:
        for name, call in candidates.items():
            times[name].append(milliseconds(call, device) / 1e3)
    results = [Result(name, len(taken), *quartiles(taken)) for name, taken in times.items()]
    return Row(job.op, job.labels, threads=1, shape={"bytes": job.bytes}, results=results), failed


def attention_peers(arguments: tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]) -> dict[str, Call]:
    """Kernels of other projects that are installed and have the usual signature."""
    value, levels, locations, weights = arguments
    shapes = torch.tensor(levels, device=value.device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    found: dict[str, Call] = {}
    for module, name in (("mmcv.ops.multi_scale_deform_attn", "MultiScaleDeformableAttnFunction"),):
        try:
            function = getattr(importlib.import_module(module), name)
        except ImportError:
            continue  # not installed
        found[module.split(".")[0]] = functools.partial(function.apply, value, shapes, starts, locations, weights, 64)
    for module in ("MultiScaleDeformableAttention", "torch_ms_deform_attn"):
        try:
            forward = importlib.import_module(module).ms_deform_attn_forward
        except (ImportError, AttributeError):
            continue  # not installed, or another interface
        found[module] = functools.partial(forward, value, shapes, starts, locations, weights, 64)
    return found


def jobs(device: str, quick: bool) -> Iterator[Job]:
    size, B = (128, 1) if quick else (1024, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        width, name = dtype.itemsize, str(dtype).removeprefix("torch.")
        shape = cases.encoder(size)._replace(B=B)
        value, levels, _, weights = cases.ms_deform_attn(shape, "uniform", dtype)
        locations = cases.encoder_locations(shape, torch.Generator().manual_seed(0)).expand(B, -1, -1, -1, -1, -1)
        tensors = tuple(x.to(device, dtype).contiguous() for x in (value, locations, weights.flatten(-2).softmax(-1)))
        value, locations, weights = tensors[0], tensors[1], tensors[2].view(weights.shape)
        outputs = B * shape.Q * shape.N * shape.D
        read = width * (value.numel() + locations.numel() + weights.numel())
        labels = {"image": f"{B} x {size}x{size}", "dtype": name}
        arguments = (value, levels, locations, weights)
        yield Job(
            "ms_deform_attn", labels | {"pass": "forward"}, read + width * outputs,
            functools.partial(ops.ms_deform_attn, *arguments), attention_peers(arguments),
        )  # fmt: skip
        leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
        grad = torch.randn(B, shape.Q, shape.N * shape.D, device=device, dtype=dtype)
        yield Job(
            "ms_deform_attn", labels | {"pass": "forward+backward"}, 3 * read + 2 * width * outputs,
            lambda leaves=leaves, levels=levels, grad=grad: torch.autograd.grad(
                ops.ms_deform_attn(leaves[0], levels, *leaves[1:]), leaves, grad
            ),
        )  # fmt: skip
        pool = cases.PoolShape(B, 256, (size // 4,) * 2, (size,) * 2, 5 * B if quick else 20 * B, 5, 12544)
        features, masks, owner, points = (x.to(device) for x in cases.masked_point_pool(pool, dtype=dtype))
        features = features.to(memory_format=torch.channels_last)
        yield Job(
            "masked_point_pool", labels, width * features.numel() + masks.numel() + width * points.numel(),
            functools.partial(ops.masked_point_pool, features, masks, owner, points),
        )  # fmt: skip
        iou = cases.IouShape(B, 20 if quick else 200, (size // 4,) * 2, 4, pool.G)
        predictions, targets, owner = (x.to(device) for x in cases.mask_iou(iou, dtype))
        yield Job(
            "mask_iou", labels, width * predictions.numel() + targets.numel(),
            functools.partial(ops.mask_iou, predictions, targets, owner),
        )  # fmt: skip
        loss = cases.LossShape(B * 10 * iou.Q, 80)
        logits, label, quality = (x.to(device) for x in cases.quality_focal_loss(loss, dtype))
        yield Job(
            "quality_focal_loss", labels, width * logits.numel() + logits.shape[0] * (8 + 2 * width),
            functools.partial(ops.quality_focal_loss, logits, label, quality),
        )  # fmt: skip


def lines(job: Job, row: Row, failed: dict[str, str], bandwidth: float) -> Iterator[str]:
    yield f"{job.op} {' '.join(job.labels.values())}"
    for result in row.results:
        rate = job.bytes / result.median / 1e9
        yield (
            f"  {result.implementation:<24}{1e3 * result.median:>10.3f} ms [{1e3 * result.lower:.3f}, {1e3 * result.upper:.3f}]"
            f"{rate:>9.0f} GB/s {rate / bandwidth:>6.0%} of a copy"
        )
    yield from (f"  {name:<24} failed: {message}" for name, message in failed.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=3, help="per measurement")
    parser.add_argument("--quick", action="store_true", help="small shapes, no torch.compile, and no results file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench-gpu: skipped, no GPU that torch can use")
        return 0
    for op in ops.OPS:
        if not (text := ops.implementation(op, options.device)).startswith("kernel"):
            print(f"bench-gpu: {op} does not run on a kernel of ours here: {text}")
            return 1
    about = environment()
    if options.device == "cuda":
        about["cpu"] = torch.cuda.get_device_name()  # what names the results file
        about["gpu"] = {"cuda": torch.version.cuda, "way": ops.implementation("ms_deform_attn", "cuda")}
    bandwidth = copy_bandwidth(options.device, 1 << (24 if options.quick else 30))
    about["copy_gb_per_s"] = bandwidth
    print(f"{about['cpu']}, torch {torch.__version__}, a copy reaches {bandwidth:.0f} GB/s")
    rows = []
    for job in jobs(options.device, options.quick):
        seconds, least = (0.0, 2) if options.quick else (options.seconds, 10)
        row, failed = measure(job, options.device, seconds, least, compiled=not options.quick)
        rows.append(row)
        print("\n".join(lines(job, row, failed, bandwidth)), flush=True)
    if options.device == "cuda" and not options.quick:
        print(f"written to {write(about, rows).relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
