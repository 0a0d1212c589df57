"""mask_iou of 100 predictions with 15 targets, at 256x256, at 1024x1024, and at 256x256 with
targets of 1024x1024."""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import Measurement, cases, main
from torch import Tensor

from alignmask import ops

OP = "mask_iou"
# labels -> shape, and how many times faster than matmul and pycocotools the kernel should be
SHAPES = {
    "256x256": (cases.IouShape(1, 100, (256, 256), 1, 15), 9, 5),
    "1024x1024": (cases.IouShape(1, 100, (1024, 1024), 1, 15), 14, 9),
    "256x256 upsampled to 1024x1024": (cases.IouShape(1, 100, (256, 256), 4, 15), None, None),
    "B2 Q200 G20 256x256 upsampled": (cases.IouShape(2, 200, (256, 256), 4, 20), None, None),
}


def with_matmul(predictions_1QHW: Tensor, targets_GHW: Tensor) -> Tensor:
    """What models do: floats, one matrix product for the intersections. One image."""
    size = targets_GHW.shape[1:]
    if predictions_1QHW.shape[2:] != size:
        predictions_1QHW = F.interpolate(
            predictions_1QHW, size=size, mode="bilinear", align_corners=False
        )
    masks_QS, targets_GS = (
        (predictions_1QHW[0] > 0).flatten(1).float(),
        targets_GHW.flatten(1).float(),
    )
    both_GQ = targets_GS @ masks_QS.T
    return both_GQ / (targets_GS.sum(1, keepdim=True) + masks_QS.sum(1) - both_GQ).clamp(min=1)


def with_pycocotools(predictions_1QHW: Tensor, targets_GHW: Tensor) -> Any:
    """What evaluations do: run lengths of both."""
    from pycocotools import mask as mask_utils

    def encode(masks: Tensor) -> Any:
        return mask_utils.encode(
            np.asfortranarray(masks.numpy().astype(np.uint8).transpose(1, 2, 0))
        )

    return mask_utils.iou(
        encode(predictions_1QHW[0] > 0), encode(targets_GHW), [False] * len(targets_GHW)
    )


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    for name, (shape, than_matmul, than_pycocotools) in SHAPES.items():
        if options.quick:
            name, shape = "odd", cases.MASK_IOU["odd"]
        predictions, targets, owner = cases.mask_iou(shape)
        peers, goals = {}, {"matmul": than_matmul, "pycocotools": than_pycocotools}
        if shape.B == 1:
            peers["matmul"] = functools.partial(with_matmul, predictions, targets)
        if shape.B == 1 and shape.scale == 1 and importlib.util.find_spec("pycocotools"):
            peers["pycocotools"] = functools.partial(with_pycocotools, predictions, targets)
        for threads in options.threads:
            yield Measurement(
                OP,
                {"shape": name, "dtype": "float32"},
                threads,
                functools.partial(ops.mask_iou, predictions, targets, owner),
                shape._asdict(),
                peers,
                {peer: goal for peer, goal in goals.items() if goal and peer in peers},
            )
        if options.quick:
            return


if __name__ == "__main__":
    assert torch.allclose(
        with_matmul(*(arguments := cases.mask_iou(cases.IouShape(1, 5, (9, 9), 2, 3)))[:2]),
        ops.mask_iou(*arguments),
    )
    main(measurements)
