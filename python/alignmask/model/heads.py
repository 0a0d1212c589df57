"""Queries -> class logits and mask embeddings; the prediction that losses and post-processing
share.

L outputs of the decoder (before its first layer and after each), B images, C class logits, E
channels, H x W the pixel embedding's size (stride 4). R rows: first the Q object queries, then the
A aligned queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignmask.config import Classification
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.layers import mlp
from alignmask.ops._precision import no_autocast


@dataclass
class Rows:
    """The outputs of the decoder for one kind of query: views of a prediction's."""

    class_logits_LBRC: Tensor
    mask_embedding_LBRE: Tensor


@dataclass
class Prediction:
    """Result of a forward pass. Mask logits are `mask_embedding . pixel_embedding`; only those that
    are needed are computed."""

    class_logits_LBRC: Tensor
    mask_embedding_LBRE: Tensor
    pixel_embedding_BEHW: Tensor
    queries: int
    """Q: the first rows are object queries, the others aligned queries."""
    iou_logits_BQ: Tensor | None = None
    """The predicted IoUs of the last output's masks; None without such a head."""
    aligned: AlignedQueries | None = None
    """The aligned queries from which the other rows were computed; None if there are none."""

    @property
    def outputs(self) -> int:
        """L."""
        return self.class_logits_LBRC.shape[0]

    @property
    def object_rows(self) -> Rows:
        return Rows(
            self.class_logits_LBRC[:, :, : self.queries],
            self.mask_embedding_LBRE[:, :, : self.queries],
        )

    @property
    def aligned_rows(self) -> Rows:
        return Rows(
            self.class_logits_LBRC[:, :, self.queries :],
            self.mask_embedding_LBRE[:, :, self.queries :],
        )

    @property
    def kind_2R(self) -> Tensor:
        """[2, R]: which rows are object queries, and which are aligned queries."""
        row_R = torch.arange(self.class_logits_LBRC.shape[2], device=self.class_logits_LBRC.device)
        return torch.stack((row_R < self.queries, row_R >= self.queries))

    def mask_logits(self, output: int = -1) -> Tensor:
        """-> [B, R, H, W]: all mask logits of one output."""
        return torch.einsum(
            "bre,behw->brhw", self.mask_embedding_LBRE[output], self.pixel_embedding_BEHW
        )


class Heads(nn.Module):
    """The class head and the mask head, shared by all outputs of the decoder and by both kinds of
    query."""

    def __init__(self, width: int, class_logits: int, classification: Classification) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, class_logits)
        self.mask = mlp(width, width, width)
        if classification != "softmax":
            # Sigmoid classes start with probability 0.01, as in focal loss; otherwise negatives
            # dominate the first steps.
            nn.init.constant_(self.classify.bias, -math.log(99.0))

    def forward(self, queries_BRE: Tensor) -> tuple[Tensor, Tensor]:
        """-> class logits [B, R, C], mask embedding [B, R, E]."""
        x = self.norm(queries_BRE)
        with no_autocast(x):  # half precision would give different predictions the same score
            class_logits = self.classify(x.to(self.classify.weight.dtype))
        return class_logits, self.mask(x)
