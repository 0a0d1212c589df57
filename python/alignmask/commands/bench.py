"""`alignmask bench`: how long an exported file takes for an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from alignmask.commands._options import flowing
from alignmask.commands.export import describe


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask bench", args=arguments)


@flowing
def command(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    size: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="H W", help_behavior_hint="")
    ] = None,
    images: int = 1,
    threads: int = 1,
    runs: int = 20,
) -> int:
    """Time a file that `alignmask export` wrote, by onnxruntime on the CPU or by torch, and say
    what it is made of.

    Its accuracy is measured by alignmask eval FILE --data-images DIR --annotations FILE.

    Args:
        file: model.onnx or model.pt2.
        size: Height and width of the images, which are padded to multiples of 32; by default a
            square of the size that evaluation resizes to.
        images: Images in a run.
        threads: Number of threads.
        runs: Number of runs that are timed, after one that is not.
    """
    from alignmask.exporting.files import about
    from alignmask.exporting.timing import time_file

    timing = time_file(file, size, images=images, threads=threads, runs=runs)
    print(describe(file, about(file)))
    print(timing)
    return 0
