"""masked_point_pool as training calls it: two images of 1024x1024, 20 instances, 5 sets of 12544 points, 256 channels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from harness import Measurement, cases, main

from alignmask import ops

OP = "masked_point_pool"


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    name = "odd" if options.quick else "model_1024"
    features, masks, owner, points = cases.masked_point_pool(cases.MASKED_POINT_POOL[name])
    features = features.contiguous(memory_format=torch.channels_last)
    leaf = features.clone().requires_grad_()

    def forward() -> object:
        return ops.masked_point_pool(features, masks, owner, points)

    def forward_backward() -> object:
        return torch.autograd.grad(ops.masked_point_pool(leaf, masks, owner, points)[0].sum(), leaf)

    for threads in options.threads:
        yield Measurement(
            OP,
            {"shape": name, "dtype": "float32", "pass": "forward"},
            threads,
            forward,
            cases.MASKED_POINT_POOL[name]._asdict(),
        )
        yield Measurement(
            OP,
            {"shape": name, "dtype": "float32", "pass": "forward+backward"},
            threads,
            forward_backward,
            cases.MASKED_POINT_POOL[name]._asdict(),
        )


if __name__ == "__main__":
    main(measurements)
