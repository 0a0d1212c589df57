"""Aligned Query Learning: queries pooled from ground-truth masks, in training only (section 2.2, Eq. 1, Fig. 3).

B images, A slots per image, E channels, T point sets, K points, G instances of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignmask import ops
from alignmask.model.config import AlignedQueryConfig
from alignmask.model.heads import mlp


@dataclass
class AlignedQueries:
    """Aligned queries in their slots; a padding slot has instance -1 and set -1."""

    features_BAE: Tensor
    instance_BA: Tensor
    """Index into the batch's instances (0..G-1)."""
    set_BA: Tensor
    """Which point set the query was pooled from."""

    @property
    def live_BA(self) -> Tensor:
        return self.instance_BA >= 0


class AlignedQueryGenerator(nn.Module):
    """Eq. 1: points sampled from pixel embedding and mask, product, average pooling, LayerNorm, MLP.

    Per image the T * M queries are listed set by set; the first N_AQ are kept (the paper pads the rest with zeros). An
    instance that a whole set missed makes no query there.
    """

    def __init__(self, config: AlignedQueryConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, width, width)

    def forward(self, embedding_BEHW: Tensor, masks_GHW: Tensor, owner_G: Tensor, counts: list[int]) -> AlignedQueries:
        """counts: instances per image, on the host, so that no slot is made that nobody fills."""
        config, device, batch = self.config, embedding_BEHW.device, embedding_BEHW.shape[0]
        if config.detach_pixel_embedding:
            embedding_BEHW = embedding_BEHW.detach()
        points_BTK2 = torch.rand(batch, config.point_sets, config.points, 2, device=device)
        pooled_GTE, weight_GT = ops.masked_point_pool(embedding_BEHW, masks_GHW, owner_G, points_BTK2, config.normalize)
        queries_GTE = self.mlp(self.norm(pooled_GTE))

        instances = owner_G.shape[0]
        slots = min(config.count, config.point_sets * max(counts, default=0))
        count_B = torch.tensor(counts, device=device, dtype=torch.long)
        first_B = count_B.cumsum(0) - count_B
        rank_G = torch.arange(instances, device=device) - first_B[owner_G]
        set_T = torch.arange(config.point_sets, device=device)
        slot_GT = rank_G[:, None] + set_T * count_B[owner_G][:, None]
        kept_GT = (slot_GT < slots) & (weight_GT > 0)
        # Queries that are not kept go to one extra slot, which is cut off.
        slot_GT = torch.where(kept_GT, slot_GT, slots)
        at = (owner_G[:, None].expand_as(slot_GT), slot_GT)

        features = queries_GTE.new_zeros(batch, slots + 1, queries_GTE.shape[2]).index_put(at, queries_GTE)
        empty = torch.full((batch, slots + 1), -1, device=device, dtype=torch.long)
        instance = empty.index_put(at, torch.arange(instances, device=device)[:, None].expand_as(slot_GT))
        point_set = empty.index_put(at, set_T.expand_as(slot_GT))
        return AlignedQueries(features[:, :slots], instance[:, :slots], point_set[:, :slots])
