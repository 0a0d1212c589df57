"""ms_deform_attn as the pixel decoder calls it: 8 heads of 32 channels, 3 levels, 4 points, every token a query."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch
from harness import Measurement, cases, main

from alignmask import ops

OP = "ms_deform_attn"


def prepare(shape: cases.DeformShape, layout: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    value, levels, locations, weights = cases.ms_deform_attn(shape, "uniform", dtype)
    if layout == "local":
        locations = cases.encoder_locations(shape, torch.Generator().manual_seed(0)).to(dtype)
    weights = weights.flatten(-2).softmax(-1).view_as(weights)
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    grad = torch.randn(shape.B, shape.Q, shape.N * shape.D).to(dtype)

    def forward() -> object:
        return ops.ms_deform_attn(value, levels, locations, weights)

    def forward_backward() -> object:
        return torch.autograd.grad(ops.ms_deform_attn(leaves[0], levels, leaves[1], leaves[2]), leaves, grad)

    return {"forward": forward, "forward+backward": forward_backward}


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    size = 256 if options.quick else 1024
    dtypes = cases.DTYPES[1:2] if options.quick else (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for dtype, layout in itertools.product(dtypes, ("local", "uniform")):
        calls = prepare(cases.encoder(size), layout, dtype)
        for (name, call), threads in itertools.product(calls.items(), options.threads):
            labels = {
                "image": f"{size}x{size}",
                "points": layout,
                "dtype": str(dtype).removeprefix("torch."),
                "pass": name,
            }
            yield Measurement(OP, labels, threads, call, cases.encoder(size)._asdict())


if __name__ == "__main__":
    main(measurements)
