"""Queries -> class logits and mask embeddings; the prediction that losses and post-processing share.

L outputs of the decoder (before its first layer and after each), B images, R rows = Q object queries, then A aligned
ones, C class logits, E channels, H x W the pixel embedding's size (stride 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignmask.config import Classification
from alignmask.model.layers import mlp
from alignmask.ops._precision import no_autocast

if TYPE_CHECKING:
    from alignmask.model.aligned_queries import AlignedQueries


@dataclass
class Prediction:
    """What a forward pass returns. Mask logits are `mask_embedding . pixel_embedding`; no more of them are made than needed."""

    class_logits_LBRC: Tensor
    mask_embedding_LBRE: Tensor
    pixel_embedding_BEHW: Tensor
    queries: int
    """Q: the first rows are object queries, the rest aligned queries."""
    aligned: AlignedQueries | None = None

    def mask_logits(self, output: int = -1) -> Tensor:
        """-> [B, R, H, W]: all mask logits of one output."""
        return torch.einsum("bre,behw->brhw", self.mask_embedding_LBRE[output], self.pixel_embedding_BEHW)


class Heads(nn.Module):
    """The class head and the mask head, shared by all outputs of the decoder and by both kinds of query."""

    def __init__(self, width: int, class_logits: int, classification: Classification) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, class_logits)
        self.mask = mlp(width, width, width)
        if classification != "softmax":
            # Sigmoid classes start rare (probability 0.01), as in focal loss, or the negatives drown the first steps.
            nn.init.constant_(self.classify.bias, -math.log(99.0))

    def forward(self, queries_BRE: Tensor) -> tuple[Tensor, Tensor]:
        """-> class logits [B, R, C], mask embedding [B, R, E]."""
        x = self.norm(queries_BRE)
        with no_autocast(x):  # scores are ranked: half precision makes ties
            class_logits = self.classify(x.to(self.classify.weight.dtype))
        return class_logits, self.mask(x)
