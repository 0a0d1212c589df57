"""Aligned Query Learning: queries pooled from ground-truth masks, in training only (section 2.2, Eq. 1, Fig. 3).

B images, A slots per image, E channels, T point sets, K points, G instances of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask import ops
from alignmask.config import AlignedQueryConfig
from alignmask.model.layers import mlp

SLOT_STEP = 32
"""On a GPU the number of slots is a multiple of this, or as many as there can be."""


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

    Per image the T * M queries are listed set by set; the first N_AQ are kept (the paper pads the rest with zeros), and as
    many of the noised sets. An instance that a whole set missed makes no query there.
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
        pooled_GTE, weight_GT = self._pool(config.point_sets, embedding_BEHW, masks_GHW, owner_G, counts)
        if config.noised_sets:
            noised = self._pool(config.noised_sets, embedding_BEHW, shift(masks_GHW, config.noise), owner_G, counts)
            pooled_GTE, weight_GT = torch.cat((pooled_GTE, noised[0]), dim=1), torch.cat((weight_GT, noised[1]), dim=1)
        queries_GTE = self.mlp(self.norm(pooled_GTE))

        instances = owner_G.shape[0]
        sets, most = config.point_sets + config.noised_sets, max(counts, default=0)
        unnoised = min(config.count, config.point_sets * most)  # slots; noised sets have their own, after these
        slots = unnoised + min(config.count, config.noised_sets * most)
        count_B = torch.tensor(counts, device=device, dtype=torch.long)
        first_B = count_B.cumsum(0) - count_B
        rank_G = torch.arange(instances, device=device) - first_B[owner_G]
        set_T = torch.arange(sets, device=device)
        noised_T = set_T >= config.point_sets
        first_T, end_T = torch.where(noised_T, unnoised, 0), torch.where(noised_T, slots, unnoised)
        order_T = torch.where(noised_T, set_T - config.point_sets, set_T)  # among sets of its kind
        slot_GT = first_T + rank_G[:, None] + order_T * count_B[owner_G][:, None]
        kept_GT = (slot_GT < end_T) & (weight_GT > 0)
        if device.type != "cpu":  # where every new shape has a price (cuDNN searches for its best attention)
            slots = min(-(-slots // SLOT_STEP) * SLOT_STEP, max(slots, config.count))
        # Queries that are not kept go to one extra slot, which is cut off.
        slot_GT = torch.where(kept_GT, slot_GT, slots)
        at = (owner_G[:, None].expand_as(slot_GT), slot_GT)

        features = queries_GTE.new_zeros(batch, slots + 1, queries_GTE.shape[2]).index_put(at, queries_GTE)
        empty = torch.full((batch, slots + 1), -1, device=device, dtype=torch.long)
        instance = empty.index_put(at, torch.arange(instances, device=device)[:, None].expand_as(slot_GT))
        point_set = empty.index_put(at, set_T.expand_as(slot_GT))
        return AlignedQueries(features[:, :slots], instance[:, :slots], point_set[:, :slots])

    def _pool(
        self, sets: int, embedding_BEHW: Tensor, masks_GHW: Tensor, owner_G: Tensor, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        """-> the masked means [G, sets, E] over random points, and how much of the mask the points hit [G, sets]."""
        config = self.config
        points_BTK2 = torch.rand(len(counts), sets, config.points, 2, device=embedding_BEHW.device)
        if on_outline := round(config.outline_share * config.points):
            for points_TK2, masks_MHW in zip(points_BTK2, masks_GHW.split(counts), strict=True):
                move_to_outlines(points_TK2[:, :on_outline], masks_MHW)
        return ops.masked_point_pool(embedding_BEHW, masks_GHW, owner_G, points_BTK2, config.normalize)


def move_to_outlines(points_TK2: Tensor, masks_MHW: Tensor) -> None:
    """Put points (in place) at random places of an image's outline pixels: those beside a pixel that is in another
    set of masks, and so is on the other side of an outline. Without instances the points stay."""
    across_y = (masks_MHW[:, 1:] != masks_MHW[:, :-1]).any(dim=0)
    across_x = (masks_MHW[:, :, 1:] != masks_MHW[:, :, :-1]).any(dim=0)
    outline_HW = F.pad(across_y, (0, 0, 1, 0)) | F.pad(across_y, (0, 0, 0, 1))
    outline_HW |= F.pad(across_x, (1, 0)) | F.pad(across_x, (0, 1))
    pixels_N2 = outline_HW.nonzero()
    if len(pixels_N2) == 0:
        return
    chosen_TK = torch.randint(len(pixels_N2), points_TK2.shape[:2], device=points_TK2.device)
    corner_TK2 = pixels_N2.flip(1)[chosen_TK]  # x, y
    points_TK2.add_(corner_TK2).div_(points_TK2.new_tensor(outline_HW.shape).flip(0))


def shift(masks_GHW: Tensor, noise: float) -> Tensor:
    """The masks, each moved by up to `noise` times its height in y and its width in x; what leaves the image is lost."""
    height, width = masks_GHW.shape[1:]
    size_G2 = torch.stack((masks_GHW.any(2).sum(1), masks_GHW.any(1).sum(1)), dim=1)
    offset_G2 = ((2 * torch.rand(len(masks_GHW), 2, device=masks_GHW.device) - 1) * noise * size_G2).round().long()
    shifted = torch.zeros_like(masks_GHW)
    for mask, moved, (dy, dx) in zip(masks_GHW, shifted, offset_G2.tolist(), strict=True):
        moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
            max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return shifted
