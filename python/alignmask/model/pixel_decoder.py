"""Backbone maps -> three decoder levels and the pixel embedding (MSDeformAttn pixel decoder,
section 2.1).

B images, S tokens of all levels, N heads, D head channels, L levels, P points, E = N * D width, h x
w a map's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask import ops
from alignmask.config import PixelDecoderConfig
from alignmask.model.layers import (
    PERIODS,
    by_parts,
    check_heads,
    exporting,
    feed_forward,
    place_waves,
    sine_position,
)

Shapes = list[tuple[int, int]]


@dataclass
class PixelFeatures:
    """Input of the query decoder."""

    levels: list[Tensor]
    """Three maps [B, E, h, w]: strides 32, 16, 8."""
    embedding_BEHW: Tensor
    """The pixel embedding PE, stride 4."""


class MSDeformAttn(nn.Module):
    """Multi-scale deformable self-attention over the tokens of all levels (Deformable DETR)."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads, self.levels, self.points = heads, levels, points
        self.value = nn.Linear(width, width)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.output = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)
        for linear in (self.value, self.output, self.weights):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.offsets.weight)
        # At the start each head samples along its own direction; point p is p + 1 steps away.
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction_N2 = torch.stack((angle.cos(), angle.sin()), dim=1)
        direction_N2 = direction_N2 / direction_N2.abs().amax(dim=1, keepdim=True)
        step_P = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = direction_N2[:, None, None] * step_P[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self, x_BSE: Tensor, position_SE: Tensor, reference_S2: Tensor, shapes: Shapes
    ) -> Tensor:
        images, tokens, width = x_BSE.shape
        query_BSE = x_BSE + position_SE
        value_BSND = self.value(x_BSE).view(images, tokens, self.heads, width // self.heads)
        points = (images, tokens, self.heads, self.levels, self.points)
        # Reference points stay float32 under autocast: half precision cannot resolve positions in a
        # large map.
        reference_BSL2 = reference_S2[:, None].expand(images, tokens, self.levels, 2)
        offsets_BSNLP2 = self.offsets(query_BSE).view(*points, 2)
        logits_BSNLP = self.weights(query_BSE).view(points)
        out_BSE = self.attend(value_BSND, shapes, reference_BSL2, offsets_BSNLP2, logits_BSNLP)
        return self.output(out_BSE)

    def attend(
        self,
        value_BSND: Tensor,
        shapes: Shapes,
        reference_BQL2: Tensor,
        offsets_BQNLP2: Tensor,
        logits_BQNLP: Tensor,
    ) -> Tensor:
        """The sampling itself, apart so that an export can have another form of it."""
        return ops.ms_deform_attn_from_offsets(
            value_BSND, shapes, reference_BQL2, offsets_BQNLP2, logits_BQNLP
        )


class EncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network; post-norm."""

    def __init__(self, config: PixelDecoderConfig, levels: int) -> None:
        super().__init__()
        self.attention = MSDeformAttn(config.width, config.heads, levels, config.points)
        self.attention_norm = nn.LayerNorm(config.width)
        self.ffn = feed_forward(config.width, config.ffn_width)
        self.ffn_norm = nn.LayerNorm(config.width)

    def forward(
        self, x_BSE: Tensor, position_SE: Tensor, reference_S2: Tensor, shapes: Shapes
    ) -> Tensor:
        attended_BSE = self.attention(x_BSE, position_SE, reference_S2, shapes)
        return by_parts(self._after_attention, x_BSE, attended_BSE)

    def _after_attention(self, x_BSE: Tensor, attended_BSE: Tensor) -> Tensor:
        x_BSE = self.attention_norm(x_BSE + attended_BSE)
        return self.ffn_norm(x_BSE + self.ffn(x_BSE))


class PixelDecoder(nn.Module):
    """Encoder over strides 32, 16, 8; one FPN step to stride 4; a 1x1 convolution to the pixel
    embedding."""

    def __init__(self, config: PixelDecoderConfig, channels: list[int]) -> None:
        super().__init__()
        width = config.width
        if width % 32:
            raise ValueError(
                f"pixel decoder width {width} is not divisible by GroupNorm's 32 groups"
            )
        stride4, *coarse = channels
        self.project = nn.ModuleList(  # strides 32, 16, 8
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width)) for c in reversed(coarse)
        )
        self.level_embedding = nn.Parameter(torch.randn(len(coarse), width))
        self.layers = nn.ModuleList(EncoderLayer(config, len(coarse)) for _ in range(config.layers))
        lateral = nn.Conv2d(stride4, width, 1, bias=False)
        self.lateral = nn.Sequential(lateral, nn.GroupNorm(32, width))
        self.place = nn.Conv2d(4 * len(PERIODS), width, 1) if config.place else None
        self.fuse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(32, width),
            nn.ReLU(inplace=True),
        )
        self.embed = nn.Conv2d(width, width, 1)
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.xavier_uniform_(convolution.weight)
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)
        nn.init.kaiming_uniform_(lateral.weight, a=1)  # as in Mask2Former

    def forward(self, maps: list[Tensor]) -> PixelFeatures:
        """maps: the backbone's, finest first."""
        stride4, *coarse = maps
        projected = [project(m) for project, m in zip(self.project, reversed(coarse), strict=True)]
        shapes = [(m.shape[2], m.shape[3]) for m in projected]
        x_BSE = torch.cat([m.flatten(2).transpose(1, 2) for m in projected], dim=1)
        width, device = x_BSE.shape[2], x_BSE.device
        position_SE = torch.cat(
            [
                sine_position(h, w, width, device) + e
                for (h, w), e in zip(shapes, self.level_embedding, strict=True)
            ]
        )
        reference_S2 = torch.cat([_pixel_centres(h, w, device) for h, w in shapes])
        for layer in self.layers:
            x_BSE = layer(x_BSE, position_SE, reference_S2, shapes)

        # In this order of steps torch sees that the maps are channels-last, also for one image.
        levels = [
            tokens.unflatten(1, shape).permute(0, 3, 1, 2)
            for tokens, shape in zip(
                x_BSE.split([h * w for h, w in shapes], dim=1), shapes, strict=True
            )
        ]
        upsampled = F.interpolate(
            levels[-1], size=stride4.shape[2:], mode="bilinear", align_corners=False
        )
        detailed = self.lateral(stride4) + upsampled
        if self.place is not None:
            h, w = stride4.shape[2:]
            detailed = detailed + self.place(place_waves(h, w, device)[None])
        fused = self.fuse(detailed)
        # Pooling and sampling read all channels of a pixel, so the map must be channels-last.
        # GroupNorm on a GPU returns another layout. An exported model does neither, and would be
        # restricted to several images, because of one the tracer cannot tell the layout.
        if not exporting():
            fused = fused.contiguous(memory_format=torch.channels_last)
        return PixelFeatures(levels, self.embed(fused))


def _pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """-> [height * width, 2]: (x, y) of every pixel's centre in [0, 1]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack(
        (x[None].expand(height, width), y[:, None].expand(height, width)), dim=2
    ).flatten(0, 1)
