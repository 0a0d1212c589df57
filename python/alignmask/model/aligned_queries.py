"""Aligned Query Learning: queries pooled from ground-truth masks, in training only (section 2.2,
Eq. 1, Fig. 3).

B images, A slots per image, E channels, T point sets, K points, G instances of the whole batch, S
tokens of one level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from alignmask import ops
from alignmask.config import AlignedQueryConfig
from alignmask.data.batch import Batch, sent
from alignmask.model.layers import mlp
from alignmask.model.noised_masks import check_noise, noised_masks
from alignmask.model.pixel_decoder import PixelFeatures

SLOT_STEP = 32
"""On a GPU the number of slots is rounded up to a multiple of this, one at least, but not beyond
N_AQ: every new shape has a cost there (cuDNN searches for its best attention kernel, CUDA graphs
are captured)."""


@dataclass
class AlignedQueries:
    """Aligned queries in their slots. A padding slot has zeros for features, instance -1 and set
    -1."""

    features_BAE: Tensor
    instance_BA: Tensor
    """Index into the batch's instances (0..G-1)."""
    set_BA: Tensor
    """The point set from which the query was pooled."""
    attention: tuple[Tensor, ...] = ()
    """For each layer of the decoder, where a query attends [B, A, S], bool. Without it, a query
    attends to the mask that it predicts, as object queries do."""

    @property
    def live_BA(self) -> Tensor:
        """False for padding."""
        return self.instance_BA >= 0


class AlignedQueryGenerator(nn.Module):
    """Makes one aligned query for each instance and point set (Eq. 1), and puts them into slots
    (Fig. 3)."""

    def __init__(self, config: AlignedQueryConfig, width: int, layers: int) -> None:
        """layers: number of layers of the query decoder. Raises ValueError unless `mask_noise` is
        None or between 0 and 1."""
        super().__init__()
        check_noise(config.mask_noise)
        self.config, self.layers = config, layers
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, width, width)

    def forward(
        self, features: PixelFeatures, batch: Batch, points_BTK2: Tensor | None = None
    ) -> AlignedQueries:
        """points_BTK2: those of `count_live`; without them, points are drawn here."""
        embedding_BEHW, masks_GHW = features.embedding_BEHW, batch.masks_GHW
        if points_BTK2 is None:
            points_BTK2 = self.draw_points(batch.batch_size, embedding_BEHW.device)
        queries_GTE, weight_GT = self._queries(
            embedding_BEHW, masks_GHW, batch.owner_G, points_BTK2
        )
        slot_GT = self._assign(weight_GT, batch.counts)
        slots = self._slots(batch.counts, embedding_BEHW.device)
        made = _fill_slots(queries_GTE, slot_GT, batch.owner_G, batch.batch_size, slots)
        noise = self.config.mask_noise
        if noise is None:
            return made
        sizes = [map_BEhw.shape[2:] for map_BEhw in features.levels]
        masks = noised_masks(masks_GHW, made.instance_BA, sizes, self.layers, noise)
        return replace(made, attention=masks)

    def draw_points(self, images: int, device: torch.device) -> Tensor:
        """Phi: K random points [B, T, K, 2]."""
        return torch.rand(images, self.config.point_sets, self.config.points, 2, device=device)

    @torch.no_grad()
    def count_live(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Before there is an embedding: points for `forward`, and how many aligned queries it will
        make of them, a scalar."""
        points_BTK2 = self.draw_points(batch.batch_size, batch.masks_GHW.device)
        nothing_B111 = points_BTK2.new_zeros(batch.batch_size, 1, 1, 1)
        weight_GT = ops.masked_point_pool(
            nothing_B111, batch.masks_GHW, batch.owner_G, points_BTK2
        )[1]
        return points_BTK2, (self._assign(weight_GT, batch.counts) >= 0).sum()

    def _queries(
        self, pe_BEHW: Tensor, m_GHW: Tensor, owner_G: Tensor, phi_BTK2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> the queries [G, T, E], and the mask weight that the points hit [G, T]."""
        if self.config.detach_pixel_embedding:
            pe_BEHW = pe_BEHW.detach()
        # Eq. 1 for all instances and point sets: the op samples PE and m_i at the points,
        # multiplies, and averages: GAP(MPf_i).
        gap_GTE, weight_GT = ops.masked_point_pool(
            pe_BEHW, m_GHW, owner_G, phi_BTK2, self.config.normalize
        )
        aq_GTE = self.mlp(self.norm(gap_GTE))  # aq_i = MLP(LN(GAP(MPf_i)))
        return aq_GTE, weight_GT

    def _assign(self, weight_GT: Tensor, counts: list[int]) -> Tensor:
        """-> [G, T]. If no point of a set hits an instance, that set makes no query for it."""
        return assign_slots(weight_GT > 0, counts, self.config.count)

    def _slots(self, counts: list[int], device: torch.device) -> int:
        """Slots per image: as many as the image with the most instances needs. `counts` is on the
        host, so that this number is known without waiting for the GPU."""
        slots = min(self.config.count, self.config.point_sets * max(counts, default=0))
        return (
            slots
            if device.type == "cpu"
            else min(max(-(-slots // SLOT_STEP), 1) * SLOT_STEP, self.config.count)
        )


def assign_slots(made_GT: Tensor, counts: list[int], limit: int) -> Tensor:
    """-> [G, T]: which slot of its image the query of an instance and a point set gets; -1 for
    none.

    The T * M queries of an image with M instances are listed set by set. The first `limit` (N_AQ)
    of them are kept; the i-th gets slot i. made_GT is False where no query was made, and that slot
    stays empty.
    """
    sets = made_GT.shape[1]
    slots_TM = [torch.arange(sets * m, device="cpu").view(sets, m) for m in counts]
    slot_GT = sent(torch.cat([slot_TM.T for slot_TM in slots_TM]), made_GT.device)
    return torch.where(made_GT & (slot_GT < limit), slot_GT, -1)


def _fill_slots(
    queries_GTE: Tensor, slot_GT: Tensor, owner_G: Tensor, images: int, slots: int
) -> AlignedQueries:
    instances, sets, width = queries_GTE.shape
    # There is one extra slot at the end. Index -1 writes to it, and it is cut off below.
    at = (owner_G[:, None].expand_as(slot_GT), slot_GT)
    features_BAE = queries_GTE.new_zeros(images, slots + 1, width).index_put(at, queries_GTE)
    empty_BA = torch.full((images, slots + 1), -1, device=slot_GT.device)
    instance_G1 = torch.arange(instances, device=slot_GT.device)[:, None]
    set_T = torch.arange(sets, device=slot_GT.device)
    instance_BA = empty_BA.index_put(at, instance_G1.expand_as(slot_GT))
    set_BA = empty_BA.index_put(at, set_T.expand_as(slot_GT))
    return AlignedQueries(features_BAE[:, :slots], instance_BA[:, :slots], set_BA[:, :slots])
