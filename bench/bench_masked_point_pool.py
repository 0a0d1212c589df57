"""masked_point_pool as training calls it: two images of 1024x1024, 15 instances each, 5 sets of
12544 points, 256 channels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from harness import Measurement, cases, main
from torch import Tensor

from alignmask import ops

OP = "masked_point_pool"
SHAPE = cases.PoolShape(2, 256, (256, 256), (1024, 1024), 30, 5, 12544)
# The reference is the best form in plain torch: points are splatted into a map, one matrix product
# contracts it.
TARGETS = {
    "forward": {"reference": 4.0},
    "forward+backward": {"reference": 3.0, "grid_sample": 25.0},
}


def with_grid_sample(
    features_BCHW: Tensor, masks_GHW: Tensor, owner_G: Tensor, points_BTK2: Tensor
) -> Tensor:
    """Eq. (1) as one writes it down: sample features and masks at all points, multiply, average."""
    pooled = []
    for image, (features_CHW, points_TK2) in enumerate(
        zip(features_BCHW, points_BTK2, strict=True)
    ):
        masks_MHW = masks_GHW[owner_G == image].to(features_CHW.dtype)
        for points_K2 in points_TK2:
            grid = 2 * points_K2[None, None] - 1
            sampled_CK = F.grid_sample(features_CHW[None], grid, align_corners=False)[0, :, 0]
            hit_MK = F.grid_sample(masks_MHW[None], grid, align_corners=False)[0, :, 0]
            pooled.append(hit_MK @ sampled_CK.T / hit_MK.sum(1, keepdim=True).clamp(min=1e-6))
    return torch.cat(pooled)


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    shape = cases.MASKED_POINT_POOL["odd"] if options.quick else SHAPE
    plain, masks, owner, points = cases.masked_point_pool(shape)
    for layout, memory_format in (
        ("channels-last", torch.channels_last),
        ("NCHW", torch.contiguous_format),
    ):
        features = plain.contiguous(memory_format=memory_format)
        leaf = features.clone().requires_grad_()
        rest = (masks, owner, points)

        def ours(f: Tensor, rest: tuple[Tensor, ...] = rest) -> Tensor:
            return ops.masked_point_pool(f, *rest)[0]

        def theirs(f: Tensor, rest: tuple[Tensor, ...] = rest) -> Tensor:
            return with_grid_sample(f, *rest)

        def backward(function: Callable[[Tensor], Tensor], leaf: Tensor = leaf) -> object:
            return torch.autograd.grad(function(leaf).sum(), leaf)

        for threads in options.threads:
            for name, call, peer in (
                ("forward", lambda f=features, o=ours: o(f), lambda f=features, t=theirs: t(f)),
                (
                    "forward+backward",
                    lambda o=ours, b=backward: b(o),
                    lambda t=theirs, b=backward: b(t),
                ),
            ):
                yield Measurement(
                    OP,
                    {"layout": layout, "dtype": "float32", "pass": name},
                    threads,
                    call,
                    shape._asdict(),
                    {"grid_sample": peer},
                    TARGETS[name] if layout == "channels-last" else {},
                )


if __name__ == "__main__":
    main(measurements)
