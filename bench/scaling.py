"""Time and memory of every op while one of its sizes doubles: a picture and a table, one thread.

`python bench/scaling.py --out docs/scaling.png`. Linear is a line of slope 1; the flat start of a
curve is what a call costs.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from harness import cases

from alignmask import ops

mpl.use("Agg")
from matplotlib import pyplot as plt

Call = Callable[[], Any]


def deform(**change: Any) -> Call:
    shape = cases.encoder(512)._replace(Q=2000)._replace(**change)
    value, levels, locations, weights = cases.ms_deform_attn(shape)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    return lambda: torch.autograd.grad(
        ops.ms_deform_attn(leaves[0], levels, *leaves[1:]).sum(), leaves
    )


def square_levels(tokens: int) -> tuple[tuple[int, int], ...]:
    side = math.isqrt(tokens)
    return ((side, tokens // side),)


def pool(**change: Any) -> Call:
    shape = cases.PoolShape(1, 64, (128, 128), (512, 512), 8, 1, 4096)._replace(**change)
    features, masks, owner, points = cases.masked_point_pool(shape)
    leaf = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    return lambda: torch.autograd.grad(
        ops.masked_point_pool(leaf, masks, owner, points)[0].sum(), leaf
    )


def iou(**change: Any) -> Call:
    arguments = cases.mask_iou(cases.IouShape(1, 32, (128, 128), 4, 8)._replace(**change))
    return lambda: ops.mask_iou(*arguments)


def loss(**change: Any) -> Call:
    logits, label, iou_R = cases.quality_focal_loss(cases.LossShape(4000, 80)._replace(**change))
    leaf = logits.requires_grad_()
    return lambda: torch.autograd.grad(ops.quality_focal_loss(leaf, label, iou_R).sum(), leaf)


# title -> the sizes that double, and the call at a size
SWEEPS: dict[str, tuple[list[int], Callable[[int], Call]]] = {
    "ms_deform_attn: Q": ([1000 << i for i in range(6)], lambda n: deform(Q=n)),
    "ms_deform_attn: S": (
        [1 << i for i in range(10, 18)],
        lambda n: deform(levels=square_levels(n)),
    ),
    "masked_point_pool: K": ([1024 << i for i in range(6)], lambda n: pool(K=n)),
    "masked_point_pool: T": ([1 << i for i in range(5)], lambda n: pool(T=n)),
    "masked_point_pool: G": ([2 << i for i in range(6)], lambda n: pool(G=n)),
    "mask_iou: G": ([2 << i for i in range(6)], lambda n: iou(G=n)),
    "mask_iou: Q": ([8 << i for i in range(6)], lambda n: iou(Q=n)),
    "quality_focal_loss: R": ([1000 << i for i in range(6)], lambda n: loss(R=n)),
}


def status(key: str) -> float:
    """MiB of this process's memory, as Linux counts it."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)
    )
    return int(line.split()[1]) / 1024


def cost(call: Call, seconds: float) -> tuple[float, float]:
    """Processor seconds (the least of several calls) and MiB at the peak of a call, its results
    included."""
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    ctypes.CDLL(None).malloc_trim(0)  # so that the call has to ask the system for its memory
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    call()
    return min(times), status("VmHWM") - before


def sweep(seconds: float) -> Iterator[tuple[str, list[int], list[tuple[float, float]]]]:
    for title, (sizes, at) in SWEEPS.items():
        costs = [cost(at(size), seconds) for size in sizes]
        slopes = [math.log2(b[0] / a[0]) for a, b in itertools.pairwise(costs)]
        print(
            f"{title:<24} {sizes[0]:>6} to {sizes[-1]:<7} {1e3 * costs[0][0]:8.2f} to "
            f"{1e3 * costs[-1][0]:8.2f} ms"
            f"  {costs[0][1]:6.1f} to {costs[-1][1]:6.1f} MiB  slope of the last doubling "
            f"{slopes[-1]:.2f}",
            flush=True,
        )
        yield title, sizes, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("--seconds", type=float, default=1, help="per size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(2, 4, figsize=(15, 7), layout="constrained")
    for axis, (title, sizes, costs) in zip(axes.flat, sweep(options.seconds), strict=True):
        times = [1e3 * seconds for seconds, _ in costs]
        axis.loglog(sizes, times, "o-", base=2, color="tab:blue", label="time")
        axis.loglog(
            sizes,
            [times[-1] * n / sizes[-1] for n in sizes],
            "--",
            base=2,
            color="tab:gray",
            label="linear",
        )
        axis.set(title=title, xlabel=title.split(": ")[1], ylabel="processor time, ms")
        memory = axis.twinx()
        memory.plot(sizes, [mib for _, mib in costs], "s:", color="tab:orange", label="memory")
        memory.set_ylabel("memory at the peak, MiB")
        memory.set_ylim(bottom=0)
        lines = [*axis.get_lines(), *memory.get_lines()]
        axis.legend(lines, [line.get_label() for line in lines], loc="upper left")
    figure.savefig(options.out, dpi=80)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
