"""Aligned queries that are told where to look: a learned vector of the class, and the mask of the
instance with noise as attention mask of every layer, in training only (MP-Former: Zhang et al.,
CVPR 2023, arXiv 2303.07336).

Slots, losses and what a query sees in self-attention are those of `aligned_queries.py`. A "point
set" is here a copy of all queries, with noise of its own.

B images, A slots per image, E channels, T point sets, G instances of the whole batch, H x W a
mask's size, h x w a level's, S = h * w tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask.config import AlignedQueryConfig
from alignmask.data.batch import Batch
from alignmask.model.aligned_queries import AlignedQueries, assign_slots, fill_slots
from alignmask.model.pixel_decoder import PixelFeatures


class NoisedMaskGenerator(nn.Module):
    """Makes one query for each instance and point set. It takes the place of
    `AlignedQueryGenerator`."""

    def __init__(self, config: AlignedQueryConfig, width: int, classes: int, layers: int) -> None:
        """layers: those of the query decoder. Raises ValueError if the noise is no share."""
        super().__init__()
        noise = config.mask_noise
        if noise is None or not 0 <= noise <= 1:
            raise ValueError(
                f"model.aligned_queries.mask_noise: expected a share from 0 to 1, got {noise}"
            )
        self.config, self.layers, self.noise = config, layers, noise
        self.pooled = None
        if config.pooled_and_noised:
            from alignmask.model.aligned_queries import AlignedQueryGenerator

            self.pooled = AlignedQueryGenerator(config, width)
        else:
            self.label = nn.Parameter(torch.randn(1 if config.blank else classes, width))

    def forward(
        self, features: PixelFeatures, batch: Batch, points_BTK2: Tensor | None = None
    ) -> AlignedQueries:
        """points_BTK2 is not used: these queries need no points."""
        if self.pooled is not None:
            made = self.pooled(features, batch, points_BTK2)
            return replace(made, attention=self._attention(features, batch, made.instance_BA))
        queries_GTE = self.label[batch.labels_G * (len(self.label) > 1)][:, None].expand(-1, self.config.point_sets, -1)
        made = fill_slots(queries_GTE, self._assign(batch), batch, self.config)
        return replace(made, attention=self._attention(features, batch, made.instance_BA))

    @torch.no_grad()
    def count_live(self, batch: Batch) -> tuple[None, Tensor]:
        """No points, and how many queries `forward` will make, a scalar."""
        return None, (self._assign(batch) >= 0).sum()

    def _assign(self, batch: Batch) -> Tensor:
        """-> [G, T]. An instance whose mask is empty makes no query."""
        seen_GT = batch.masks_GHW.flatten(1).any(1)[:, None].expand(-1, self.config.point_sets)
        return assign_slots(seen_GT, batch.counts, self.config.count)

    @torch.no_grad()
    def _attention(
        self, features: PixelFeatures, batch: Batch, instance_BA: Tensor
    ) -> tuple[Tensor, ...]:
        """-> for each layer of the decoder, [B, A, S]."""
        levels = [
            _mask_of_slots(cells_of(batch.masks_GHW, *map_BEhw.shape[2:]), instance_BA)
            for map_BEhw in features.levels
        ]
        return tuple(
            with_noise(levels[layer % len(levels)], self.noise) for layer in range(self.layers)
        )


def cells_of(masks_GHW: Tensor, h: int, w: int) -> Tensor:
    """-> [G, h, w]: the cells of a level in which a mask has a pixel."""
    height, width = masks_GHW.shape[1:]
    rows, columns = -(-height // h), -(-width // w)
    padded_GHW = F.pad(masks_GHW, (0, columns * w - width, 0, rows * h - height))
    return padded_GHW.unflatten(2, (w, columns)).any(3).unflatten(1, (h, rows)).any(2)


def _mask_of_slots(cells_Ghw: Tensor, instance_BA: Tensor) -> Tensor:
    """-> [B, A, S]: the mask of the instance in each slot; that of padding is empty."""
    nothing_1S = cells_Ghw.new_zeros(1, cells_Ghw.shape[1] * cells_Ghw.shape[2])
    return torch.cat((cells_Ghw.flatten(1), nothing_1S))[instance_BA]


def with_noise(masks_BAS: Tensor, noise: float) -> Tensor:
    """Turn over as many cells as `noise` times those of the mask, on average, wherever they lie. A
    mask that is empty then is everything, since attention needs a key."""
    share_BA1 = masks_BAS.float().mean(2, keepdim=True) * noise
    noised_BAS = masks_BAS ^ (torch.rand(masks_BAS.shape, device=masks_BAS.device) < share_BA1)
    return noised_BAS | ~noised_BAS.any(2, keepdim=True)
