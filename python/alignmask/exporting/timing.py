"""How long an exported file takes for an image."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from alignmask.exporting import files
from alignmask.exporting.parity import smooth_images
from alignmask.exporting.segmenter import DIVISOR, SMALLEST


@dataclass(frozen=True)
class Timing:
    """Seconds of each run on the same images, in the order of the runs."""

    images: int
    height: int
    width: int
    threads: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        batch = f"{self.images} x " if self.images > 1 else ""
        times = [self.median, min(self.seconds)]
        median, least = (f"{1e3 * seconds:.1f} ms" for seconds in times)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"{batch}{self.height} x {self.width}, {threads}: median {median}, least {least} of "
            f"{len(self.seconds)} runs"
        )


def time_file(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    images: int = 1,
    threads: int = 1,
    runs: int = 20,
) -> Timing:
    """Run an exported file on generated images, after one run that is not counted.

    Args:
        size: Height and width, which are padded to multiples of 32 (64 at least); by default a
            square whose sides are the shorter side of evaluation.
        images: Images in a run.
        threads: Of torch or onnxruntime; torch's are afterwards what they were.

    Raises:
        FileNotFoundError, ValueError: As of `files.about`; ValueError also for a number below 1.
    """
    about = files.about(path)
    height, width = size or (about["short_side"],) * 2
    if min(height, width, images, threads, runs) < 1:
        raise ValueError("bench: sizes and numbers: expected 1 or more")
    height, width = (max(SMALLEST, -(-side // DIVISOR) * DIVISOR) for side in (height, width))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        device = torch.device(about.get("device", "cpu"))
        run = files.open_file(path, threads)
        inputs = smooth_images(images, (height, width), device)
        seconds = []
        with torch.inference_mode():
            for _ in range(runs + 1):
                began = time.perf_counter()
                run(*inputs)[0].sum().item()  # which waits for a GPU
                seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return Timing(images, height, width, threads, seconds[1:])
