"""mask_points as a training step calls it: 100 rows with a mask loss, 12544 points each,
three times as many candidates, logits at a quarter of the images' 512 or 1024 pixels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from harness import Measurement, cases, main
from torch import Tensor

from alignmask import ops
from tests.loss import pointrend

OP = "mask_points"
SHAPES = ("model_512", "model_1024")


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    for name in ("odd",) if options.quick else SHAPES:
        shape = cases.MASK_POINTS[name]
        logits, masks, index, count, seed = cases.mask_points(shape)
        leaf = logits.clone().requires_grad_()
        rest = (masks, index, count)

        def ours(x: Tensor, rest: tuple[Tensor, Tensor, int] = rest, seed: int = seed) -> Tensor:
            return ops.mask_points(x, *rest, seed)[0]

        def theirs(x: Tensor, rest: tuple[Tensor, Tensor, int] = rest) -> Tensor:
            return pointrend.composed(x, *rest)[0]

        def backward(function: Callable[[Tensor], Tensor], leaf: Tensor = leaf) -> object:
            return torch.autograd.grad(function(leaf).sum(), leaf)

        for threads in options.threads:
            for label, call, peer in (
                ("forward", lambda x=logits, o=ours: o(x), lambda x=logits, t=theirs: t(x)),
                (
                    "forward+backward",
                    lambda o=ours, b=backward: b(o),
                    lambda t=theirs, b=backward: b(t),
                ),
            ):
                yield Measurement(
                    OP,
                    {"shape": name, "dtype": "float32", "pass": label},
                    threads,
                    call,
                    shape._asdict(),
                    {"rand, grid_sample, topk": peer},
                    {"rand, grid_sample, topk": 4.0},
                )


if __name__ == "__main__":
    main(measurements)
