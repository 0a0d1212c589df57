"""mask_iou as label assignment calls it: two images, 200 predictions of 256x256 each, 20 targets, upsampled or not."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

from harness import Measurement, cases, main

from alignmask import ops

OP = "mask_iou"


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    for name in ("odd",) if options.quick else ("model_1024 low", "model_1024"):
        arguments = cases.mask_iou(cases.MASK_IOU[name])
        for threads in options.threads:
            yield Measurement(
                OP,
                {"shape": name, "dtype": "float32"},
                threads,
                functools.partial(ops.mask_iou, *arguments),
                cases.MASK_IOU[name]._asdict(),
            )


if __name__ == "__main__":
    main(measurements)
