"""ms_deform_attn as the pixel decoder calls it: 8 heads of 32 channels, 3 levels, 4 points, every
token a query."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch
from harness import Measurement, cases, main
from peers_ms_deform_attn import PEERS
from torch import Tensor

from alignmask import ops

OP = "ms_deform_attn"
TARGETS = {
    "forward": {"reference": 20.0, "embedding_bag": 5.0, "torch-ms-deform-attn": 3.0},
    "forward+backward": {"reference": 9.0, "embedding_bag": 7.0, "torch-ms-deform-attn": 3.0},
}
"""With local points, fp32. The reference is Mask2Former's form, through grid_sample."""
SECOND_FORM_TARGET = 1.3
HALF_TARGET = 1 / 1.3

Call = Callable[[], object]
Function = Callable[..., Tensor]


def passes(function: Function, tensors: list[Tensor], grad: Tensor) -> dict[str, Call]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    return {
        "forward": lambda: function(*tensors),
        "forward+backward": lambda: torch.autograd.grad(function(*leaves), leaves, grad),
    }


def first_form(function: Function, levels: list[tuple[int, int]]) -> Function:
    return lambda value, locations, weights: function(value, levels, locations, weights)


def by_torch(levels: list[tuple[int, int]]) -> Function:
    """The second form by softmax and location arithmetic in torch, and our first form."""
    size_L12 = torch.tensor([[[w, h]] for h, w in levels])

    def function(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(-2).softmax(-1).view_as(logits)
        return ops.ms_deform_attn(
            value, levels, reference[:, :, None, :, None] + offsets / size_L12, weights
        )

    return function


def inputs(shape: cases.DeformShape, layout: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, locations, attention weights, gradient of the output."""
    value, _, locations, weights = cases.ms_deform_attn(shape, "uniform")
    if layout == "local":
        locations = cases.encoder_locations(shape, torch.Generator().manual_seed(0))
    weights = weights.flatten(-2).softmax(-1).view_as(weights)
    return value, locations, weights, torch.randn(shape.B, shape.Q, shape.N * shape.D)


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    size = 256 if options.quick else 1024
    shape = cases.encoder(size)
    levels = list(shape.levels)
    dtypes = (
        cases.DTYPES[1:2]
        if options.quick
        else (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    )
    for dtype, layout in itertools.product(dtypes, ("local", "uniform")):
        *tensors, grad = inputs(shape, layout)
        half = dtype.itemsize == 2
        names = {
            name: peer
            for name, peer in PEERS.items()
            if dtype == torch.float32 and layout == "local"
        }
        peers = {
            name: passes(first_form(peer, levels), tensors, grad) for name, peer in names.items()
        }
        if half:
            peers["float32"] = passes(first_form(ops.ms_deform_attn, levels), tensors, grad)
        ours = passes(
            first_form(ops.ms_deform_attn, levels), [t.to(dtype) for t in tensors], grad.to(dtype)
        )
        for name, threads in itertools.product(ours, options.threads):
            targets = {"float32": HALF_TARGET} if half else TARGETS[name] if names else {}
            yield Measurement(
                OP,
                {
                    "image": f"{size}x{size}",
                    "points": layout,
                    "dtype": str(dtype).removeprefix("torch."),
                    "pass": name,
                },
                threads,
                ours[name],
                shape._asdict(),
                {peer: calls[name] for peer, calls in peers.items()},
                targets,
            )
    yield from second_form(options, size)


def second_form(options: argparse.Namespace, size: int) -> Iterator[Measurement]:
    """From reference points, offsets and logits, as the pixel decoder calls it: one point for all
    levels."""
    shape = cases.encoder(size)
    levels = list(shape.levels)
    value, locations, logits, grad = inputs(shape, "local")
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w)
        for h, w in levels
    ]
    reference = torch.cat(centres).flip(1)[None, :, None].expand(shape.B, shape.Q, len(levels), 2)
    size_L12 = torch.tensor([[[w, h]] for h, w in levels])
    points = [(locations - reference[:, :, None, :, None]) * size_L12, 10 * logits]

    def with_reference(function: Function) -> Function:
        return lambda value, offsets, logits: function(value, reference, offsets, logits)

    def fused(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ops.ms_deform_attn_from_offsets(value, levels, reference, offsets, logits)

    ours = passes(with_reference(fused), [value, *points], grad)
    theirs = passes(with_reference(by_torch(levels)), [value, *points], grad)
    for name, threads in itertools.product(ours, options.threads):
        yield Measurement(
            OP,
            {"image": f"{size}x{size}", "points": "offsets", "dtype": "float32", "pass": name},
            threads,
            ours[name],
            shape._asdict(),
            {"first form": theirs[name]},
            {"first form": SECOND_FORM_TARGET},
        )


if __name__ == "__main__":
    main(measurements)
