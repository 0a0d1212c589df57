"""Multiply-adds of a model's forward pass, counted on the meta device: no weights, no memory, any
size.

B images, E channels, H x W pixels.
R rows: first the Q object queries, then the A aligned queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from alignmask.config import ModelConfig
from alignmask.model import AlignMask, build_model
from alignmask.model.aligned_queries import AlignedQueries


@register_flop_formula(torch.ops.alignmask.ms_deform_attn)
def _ms_deform_attn(
    value: Any, level_shapes: Any, locations: Any, weights: Any, *_: Any, **__: Any
) -> int:
    """Per sampled point and channel four multiply-adds of bilinear interpolation and one of the
    attention weight."""
    batch, queries, heads, levels, points = weights
    return 2 * 5 * batch * queries * heads * levels * points * value[3]


@dataclass(frozen=True)
class Flops:
    """GMACs (10^9 multiply-adds) of one image; papers call them GFLOPs."""

    backbone: float
    pixel_decoder: float
    query_decoder: float
    masks: float
    """Mask logits of all queries at stride 4, for the last output only."""
    plain_masks: float
    """Additional cost in Mask2Former's implementation, which computes full-size mask logits at
    every output."""

    @property
    def total(self) -> float:
        return self.backbone + self.pixel_decoder + self.query_decoder + self.masks


def count_flops(config: ModelConfig, height: int, width: int, aligned_queries: int = 0) -> Flops:
    """One forward pass on one image of height x width (divisible by 32).

    aligned_queries: number of aligned queries besides the object queries, as in training (Table 1
    counts 100).
    """
    with torch.device("meta"):
        model = _without_weights(config)
        image = torch.empty(1, 3, height, width)
        aligned = None
        if aligned_queries:
            slots = torch.empty(1, aligned_queries, dtype=torch.long)
            features = torch.empty(1, aligned_queries, config.pixel_decoder.width)
            aligned = AlignedQueries(features, slots, slots)
        with torch.no_grad():
            maps, backbone = _counted(model.backbone, image)
            features, pixel_decoder = _counted(model.pixel_decoder, maps)
            prediction, query_decoder = _counted(model.query_decoder, features, aligned)
    rows, outputs = prediction.mask_embedding_LBRE.shape[2], prediction.mask_embedding_LBRE.shape[0]
    once = rows * config.pixel_decoder.width * (height // 4) * (width // 4) / 1e9
    coarse = sum(
        rows * config.pixel_decoder.width * m.shape[2] * m.shape[3] / 1e9
        for m in (features.levels[i % 3] for i in range(outputs - 1))
    )
    return Flops(backbone, pixel_decoder, query_decoder, once, (outputs - 1) * once - coarse)


def count_parameters(config: ModelConfig) -> int:
    """Of the whole model, the aligned queries' MLP included."""
    return sum(parameter.numel() for parameter in _without_weights(config).parameters())


def _without_weights(config: ModelConfig) -> AlignMask:
    with torch.device("meta"):
        model = build_model(replace(config, backbone=replace(config.backbone, pretrained=False)))
    return model.eval().requires_grad_(False)


def _counted(module: torch.nn.Module, *inputs: Any) -> tuple[Any, float]:
    with FlopCounterMode(display=False) as counter:
        result = module(*inputs)
    return result, counter.get_total_flops() / 2e9
