"""Models and batches that are small enough to test with, and yet have every part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from alignmask.config import (
    AlignedQueryConfig,
    BackboneConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
)
from alignmask.data import Batch
from alignmask.model import AlignMask, build_model

ALIGNED = AlignedQueryConfig(count=7, point_sets=3, points=64)


def model_config(**changes: Any) -> ModelConfig:
    """A model of 0.2 M parameters around a random ResNet-10."""
    config = ModelConfig(
        num_classes=4,
        backbone=BackboneConfig("resnet10t", pretrained=False),
        pixel_decoder=PixelDecoderConfig(width=32, layers=1, heads=4, points=2, ffn_width=32),
        query_decoder=QueryDecoderConfig(queries=6, layers=3, heads=4, ffn_width=32),
        aligned_queries=ALIGNED,
        detections=10,
    )
    return replace(config, **changes)


def model(seed: int = 0, **changes: Any) -> AlignMask:
    torch.manual_seed(seed)
    return build_model(model_config(**changes))


def batch(
    counts: tuple[int, ...] = (3, 0, 2), size: tuple[int, int] = (64, 96), seed: int = 0
) -> Batch:
    """Random pixels; every instance is a random rectangle."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    instances = sum(counts)
    masks_GHW = torch.zeros(instances, height, width, dtype=torch.bool)
    for mask in masks_GHW:
        y, x = (int(torch.randint(0, side - 12, (), generator=generator)) for side in size)
        h, w = (int(torch.randint(8, side // 2, (), generator=generator)) for side in size)
        mask[y : y + h, x : x + w] = True
    return Batch(
        image_BCHW=torch.randint(0, 256, (len(counts), 3, height, width), generator=generator).to(
            torch.uint8
        ),
        valid_BHW=torch.ones(len(counts), height, width, dtype=torch.bool),
        masks_GHW=masks_GHW,
        labels_G=torch.randint(0, 4, (instances,), generator=generator),
        owner_G=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        counts=list(counts),
        image_ids=[100 + i for i in range(len(counts))],
        file_names=[f"{i}.png" for i in range(len(counts))],
        sizes=[size] * len(counts),
        original_sizes=[size] * len(counts),
    )
