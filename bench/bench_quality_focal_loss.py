"""quality_focal_loss as a training step calls it: 10 outputs of 16 images, 200 queries each, 80 classes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from harness import Measurement, cases, main

from alignmask import ops

OP = "quality_focal_loss"


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    name = "odd" if options.quick else "model"
    logits, label, iou = cases.quality_focal_loss(cases.QUALITY_FOCAL_LOSS[name])
    leaf = logits.clone().requires_grad_()

    def forward_backward() -> object:
        return torch.autograd.grad(ops.quality_focal_loss(leaf, label, iou).sum(), leaf)

    for threads in options.threads:
        yield Measurement(
            OP,
            {"shape": name, "dtype": "float32", "pass": "forward+backward"},
            threads,
            forward_backward,
            cases.QUALITY_FOCAL_LOSS[name]._asdict(),
        )


if __name__ == "__main__":
    main(measurements)
