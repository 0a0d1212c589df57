"""Aligned Query Learning: queries pooled from ground-truth masks, in training only (section 2.2,
Eq. 1, Fig. 3).

B images, A slots per image, E channels, T point sets, K points, G instances of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignmask import ops
from alignmask.config import AlignedQueryConfig
from alignmask.data.batch import sent
from alignmask.model.layers import mlp

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

    masks_GHW: Tensor | None = None
    """For `noised`: what live slots attend to."""
    noise: float = 0.0

    def attention(self, h: int, w: int) -> Tensor:
        """-> [B, A, h * w], True where a slot may attend: its noised mask."""
        assert self.masks_GHW is not None
        area_Ghw = F.adaptive_avg_pool2d(self.masks_GHW[:, None].float(), (h, w))[:, 0]
        seen_GS = (area_Ghw > 0).flatten(1)
        seen_BAS = seen_GS[self.instance_BA.clamp(min=0)]
        share_BA1 = seen_BAS.float().mean(2, keepdim=True) * self.noise
        noised_BAS = seen_BAS ^ (torch.rand(seen_BAS.shape, device=seen_BAS.device) < share_BA1)
        return noised_BAS | ~self.live_BA[:, :, None] | ~noised_BAS.any(2, keepdim=True)

    @property
    def live_BA(self) -> Tensor:
        """False for padding."""
        return self.instance_BA >= 0


class AlignedQueryGenerator(nn.Module):
    """Makes one aligned query for each instance and point set (Eq. 1), and puts them into slots
    (Fig. 3)."""

    def __init__(self, config: AlignedQueryConfig, width: int, classes: int = 1) -> None:
        super().__init__()
        self.config = config
        self.label = nn.Parameter(torch.randn(classes, width)) if config.noised is not None else None
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, width, width)

    def forward(
        self,
        embedding_BEHW: Tensor,
        masks_GHW: Tensor,
        owner_G: Tensor,
        counts: list[int],
        points_BTK2: Tensor | None = None,
        labels_G: Tensor | None = None,
    ) -> AlignedQueries:
        """counts: the number of instances in each image, as Python ints, so that the number of
        slots is known without waiting for the GPU. points_BTK2: those of `draw_points`, which are
        otherwise drawn here."""
        if points_BTK2 is None:
            points_BTK2 = self.draw_points(len(counts), embedding_BEHW.device)
        if self.label is not None and labels_G is not None:
            sets = self.config.point_sets
            queries_GTE = self.label[labels_G][:, None].expand(-1, sets, -1)
            weight_GT = masks_GHW.flatten(1).any(1).float()[:, None].expand(-1, sets)
            slot_GT = self._assign(weight_GT, counts)
            slots = self._slots(counts, embedding_BEHW.device)
            made = _fill_slots(queries_GTE, slot_GT, owner_G, len(counts), slots)
            made.masks_GHW, made.noise = masks_GHW, float(self.config.noised or 0)
            return made
        queries_GTE, weight_GT = self._queries(embedding_BEHW, masks_GHW, owner_G, points_BTK2)
        slot_GT = self._assign(weight_GT, counts)
        slots = self._slots(counts, embedding_BEHW.device)
        return _fill_slots(queries_GTE, slot_GT, owner_G, len(counts), slots)

    def draw_points(self, images: int, device: torch.device) -> Tensor:
        """Phi: K random points [B, T, K, 2]."""
        return torch.rand(images, self.config.point_sets, self.config.points, 2, device=device)

    @torch.no_grad()
    def count_live(
        self, masks_GHW: Tensor, owner_G: Tensor, counts: list[int], points_BTK2: Tensor
    ) -> Tensor:
        """How many aligned queries `forward` will make of these points: a scalar, before there is
        an embedding."""
        nothing_B111 = points_BTK2.new_zeros(len(counts), 1, 1, 1)
        weight_GT = ops.masked_point_pool(nothing_B111, masks_GHW, owner_G, points_BTK2)[1]
        return (self._assign(weight_GT, counts) >= 0).sum()

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
        """Slots per image: as many as the image with the most instances needs."""
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
