"""What the programs of the report share: the device, the paper's shapes, how time is taken, where
results go.

Every program runs by itself, too: `GPU_REPORT_DEVICE=cpu python bench/gpu/ops_times.py` goes
through the motions.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

DEVICE = os.environ.get("GPU_REPORT_DEVICE", "cuda")
GPU = DEVICE == "cuda"
WORK = Path(os.environ.get("GPU_REPORT_WORK", "build/gpu_report/work"))
SKIPPED = 77
"""Exit code of a program that has nothing to do here; the last line that it prints says why."""

# The paper's shapes: images of 1024 x 1024, tokens of strides 32, 16 and 8.
LEVELS = [(32, 32), (64, 64), (128, 128)] if GPU else [(2, 2), (4, 4), (8, 8)]
B = 4 if GPU else 2
N, D, P = 8, 32, 4
SIDE = 8 * LEVELS[-1][0]

Call = Callable[[], Any]


def skip(reason: str) -> NoReturn:
    print(reason)
    sys.exit(SKIPPED)


def say(*words: object) -> None:
    print(*words, flush=True)


class Results:
    """What a program found, by name; written after each, so that nothing is lost if its time runs
    out."""

    def __init__(self, section: str) -> None:
        self._path = WORK / "results" / f"{section}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.found[name] = value
        say(f"{name}: {short(value)}")
        self._path.write_text(json.dumps(self.found, indent=1) + "\n")

    def attempt(self, name: str, function: Callable[[], Any]) -> None:
        """What fails is said in its place, and the rest goes on."""
        try:
            self[name] = function()
        except Exception as error:
            message = str(error).strip().splitlines()
            self[name] = {
                "failed": f"{type(error).__name__}: {message[0][:300] if message else ''}"
            }
            if GPU:
                torch.cuda.empty_cache()


def short(value: Any) -> str:
    """JSON in one line, numbers with four digits."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {short(item)}" for key, item in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- time


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def wall_ms(call: Call) -> float:
    """Of one call, from an idle device to an idle device: what waits for a result sees this."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def _between_events(call: Call, repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def graph_ms(
    call: Call, calls: int = 4, repeat: int = 9, prepare: Callable[[], Call] | None = None
) -> float:
    """Of one call on the device alone: `calls` of them captured in a CUDA graph, the median over
    replays.

    The same call again finds its data in the L2 cache as far as it fits there (50 MB on an H100;
    the paper's need more). `prepare` makes the call on the capturing stream: a backward pass runs
    where its forward ran.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made = prepare() if prepare else call
        for _ in range(3):
            made()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            made()
    graph.replay()
    return statistics.median(_between_events(graph.replay, repeat)) / calls


def loop_ms(call: Call, calls: int = 10, repeat: int = 5) -> float:
    """Of one call among many, one after the other without waiting: the device's time, or the host's
    where that is longer."""

    def several() -> None:
        for _ in range(calls):
            call()

    call()
    if GPU:
        return statistics.median(_between_events(several, repeat)) / calls
    return wall_ms(call)


def host_us(call: Call, calls: int = 20, repeat: int = 5) -> float:
    """What the host needs to ask for one call, while the device is behind."""
    call()
    calls, repeat = (calls, repeat) if GPU else (1, 1)
    times = []
    for _ in range(repeat):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    synchronize()
    return statistics.median(times)


def times_of(
    forward: Callable[[], Tensor], leaves: tuple[Tensor, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Time of forward, of backward alone, and of both, each by graph, loop and host as far as there
    is such a number.

    Args:
        forward: Its result depends on `leaves`.
        leaves: Whose gradients are wanted; none: forward alone.
    """

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return forward()

    found: dict[str, dict[str, Any]] = {"forward": _three(without_gradient)}
    if leaves:
        grad = torch.randn_like(without_gradient())

        def both() -> Any:
            return torch.autograd.grad(forward(), leaves, grad)

        def backward() -> Call:
            out = forward()
            return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

        found["forward+backward"] = _three(both)
        found["backward"] = _graph(both, prepare=backward) if GPU else {}
    return found


def _three(call: Call) -> dict[str, Any]:
    return {"loop ms": loop_ms(call), "host us": host_us(call), **(_graph(call) if GPU else {})}


def _graph(call: Call, prepare: Callable[[], Call] | None = None) -> dict[str, Any]:
    try:
        return {"graph ms": graph_ms(call, prepare=prepare)}
    except Exception as error:  # other projects' kernels need not go into a graph
        torch.cuda.synchronize()
        return {"no graph": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"}


def kernels_ms(call: Call) -> float:
    """Sum of the times of all kernels and copies of one call, by torch's profiler."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return (
        sum(
            e.time_range.elapsed_us() for e in events if not getattr(e, "is_user_annotation", False)
        )
        / 1e3
    )


def peak_gib(call: Call) -> float:
    """Most memory of tensors at once during a call, all that was there before included."""
    if not GPU:
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def rounds(sides: dict[str, Call], count: int) -> dict[str, dict[str, float]]:
    """Whole models, in turns: medians over rounds of wall time, then time of kernels alone and
    memory.

    The first rounds of a process are slower and are thrown away; kernels alone do not know how busy
    the host is.
    """
    count, warm = (count, 3) if GPU else (1, 0)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + count):
        for name, call in sides.items():
            taken = wall_ms(call)
            if turn >= warm:
                times[name].append(taken)
    found = {}
    for name, call in sides.items():
        found[name] = {
            "wall ms": statistics.median(times[name]), "wall ms least": min(times[name]), "wall ms most": max(times[name]),
            "peak GiB": peak_gib(call),
        }  # fmt: skip
        if GPU:
            found[name]["kernels ms"] = kernels_ms(call)
    return found


# ---- inputs, made on the device


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def attention(dtype: torch.dtype, spread: float = 2.0, images: int = B) -> tuple[Any, ...]:
    """Arguments of ms_deform_attn_from_offsets as the pixel decoder calls it: points some `spread`
    pixels around every query's own token."""
    S, L, g = sum(h * w for h, w in LEVELS), len(LEVELS), generator()
    value = torch.randn(images, S, N, D, device=DEVICE, generator=g).to(dtype)
    centres = []
    for h, w in LEVELS:
        y, x = torch.meshgrid(
            (torch.arange(h, device=DEVICE) + 0.5) / h,
            (torch.arange(w, device=DEVICE) + 0.5) / w,
            indexing="ij",
        )
        centres.append(torch.stack([x, y], -1).reshape(-1, 2))
    reference = torch.cat(centres)[:, None].expand(images, S, L, 2)
    offsets = (spread * torch.randn(images, S, N, L, P, 2, device=DEVICE, generator=g)).to(dtype)
    logits = torch.randn(images, S, N, L, P, device=DEVICE, generator=g).to(dtype)
    return value, LEVELS, reference, offsets, logits


def smooth_maps(*shape: int) -> Tensor:
    """Noise of 16 x 16 pixels, enlarged to `shape`, [..., H, W]: zeros lie along lines, as those of
    a model's mask logits do."""
    coarse = torch.randn(1, math.prod(shape[:-2]), 16, 16, device=DEVICE, generator=generator())
    return torch.nn.functional.interpolate(coarse, size=shape[-2:], mode="bicubic").view(shape)


def masks(count: int, side: int) -> Tensor:
    """Ellipses, of 3 to 28 % of the image; 13 % on average."""
    y = torch.linspace(0, 1, side, device=DEVICE)[:, None]
    x = torch.linspace(0, 1, side, device=DEVICE)[None]
    numbers = torch.rand(count, 4, 1, 1, device=DEVICE, generator=generator(1))
    centre_y, centre_x, height, width = numbers.unbind(1)
    return ((y - centre_y) / (0.1 + 0.2 * height)) ** 2 + (
        (x - centre_x) / (0.1 + 0.2 * width)
    ) ** 2 < 1


def batch(images: int, instances: int, classes: int, side: int = SIDE) -> Any:
    """A batch of random pixels with `instances` ellipses in every image."""
    from alignmask.data import Sample, collate

    g = torch.Generator().manual_seed(0)
    found = (
        masks(images * instances, side).cpu()
        if instances
        else torch.zeros(0, side, side, dtype=torch.bool)
    )
    samples = [
        Sample(
            image_CHW=torch.randint(0, 256, (3, side, side), generator=g, dtype=torch.uint8),
            masks_NHW=found[i * instances : (i + 1) * instances],
            labels_N=torch.randint(0, classes, (instances,), generator=g),
            image_id=i, file_name=f"{i}.png", original_size=(side, side),
        )
        for i in range(images)
    ]  # fmt: skip
    return collate(samples).to(DEVICE)
