"""mask_rle of 100 masks: at 1024x1024 from 256x256 logits, and of a photo of 427x640 pixels that a
network sees at 800x1066, padded. Smooth logits, as a model's are, and noise."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from harness import Measurement, cases, main
from torch import Tensor

from alignmask import ops
from alignmask.data.rle import encode, from_runs

OP = "mask_rle"
GOAL = 8  # times as fast as torch and pycocotools, for smooth logits at 1024x1024
CHUNK = 16 * 2**20  # pixels that are upsampled at once
Size = tuple[int, int]


def with_masks(logits_NHW: Tensor, size: Size, padded: Size, valid: Size) -> list[dict[str, Any]]:
    """What models do: masks at the image's size, encoded by pycocotools."""
    masks = []
    for part in logits_NHW.split(max(1, CHUNK // max(padded[0] * padded[1], size[0] * size[1]))):
        full = F.interpolate(part[None], size=padded, mode="bilinear", align_corners=False)
        full = full[..., : valid[0], : valid[1]]
        if valid != size:
            full = F.interpolate(full, size=size, mode="bilinear", align_corners=False)
        masks.append(full[0] > 0)
    return encode(torch.cat(masks))


def encoded(logits_NHW: Tensor, size: Size, padded: Size, valid: Size) -> list[dict[str, Any]]:
    """The same by the op, which measures area, box and mean probability, too."""
    counts_R, offsets, *_ = ops.mask_rle(logits_NHW, size, padded, valid)
    return from_runs(counts_R, offsets, size)


def measurements(options: argparse.Namespace) -> Iterator[Measurement]:
    for name in ("1024x1024", "photo"):
        shape = cases.MASK_RLE["odd" if options.quick else name]
        for smooth in (True, False):
            logits = cases.mask_rle(shape, smooth=smooth)
            peers = {
                "interpolate and pycocotools": functools.partial(with_masks, logits, *shape.sizes)
            }
            for threads in options.threads:
                yield Measurement(
                    OP,
                    {"shape": name, "logits": "smooth" if smooth else "noise"},
                    threads,
                    functools.partial(encoded, logits, *shape.sizes),
                    shape._asdict(),
                    peers,
                    dict.fromkeys(peers, GOAL) if smooth and name == "1024x1024" else {},
                )
        if options.quick:
            return


if __name__ == "__main__":
    small = cases.MASK_RLE["odd"]
    assert encoded(cases.mask_rle(small), *small.sizes) == with_masks(
        cases.mask_rle(small), *small.sizes
    )
    main(measurements)
