"""Masked-attention transformer decoder (section 2.1; Mask2Former), with aligned queries beside the
object queries.

B images, S tokens of one level, E channels, L outputs, h x w a map's size.
R rows: first the Q object queries, then the A aligned queries.
Attention masks are boolean, True where a row may attend, and broadcast over heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask.config import AlignedQueryConfig, QueryDecoderConfig, Visible
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.heads import Heads, Prediction
from alignmask.model.layers import check_heads, feed_forward, sine_position
from alignmask.model.pixel_decoder import PixelFeatures

LEVELS = 3


class AttentionBlock(nn.Module):
    """Multi-head attention, residual, post-norm. Positions are added to queries and keys, never to
    values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        for linear in (self.query, self.key, self.value, self.output):
            # Mask2Former initialises query, key and value as one matrix. That matrix has three
            # times as many outputs, so Xavier's rule gives it smaller values; the gain reproduces
            # them.
            nn.init.xavier_uniform_(linear.weight, gain=1.0 if linear is self.output else 0.5**0.5)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x_BRE: Tensor,
        position_RE: Tensor,
        memory_BSE: Tensor,
        memory_position_SE: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        q = self._split(self.query(x_BRE + position_RE))
        k = self._split(self.key(memory_BSE + memory_position_SE))
        v = self._split(self.value(memory_BSE))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.norm(x_BRE + self.output(attended.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


@dataclass
class Level:
    """A map of the pixel decoder, in the form in which decoder layers attend to it."""

    memory_BSE: Tensor
    position_SE: Tensor
    embedding_BES: Tensor
    """The pixel embedding at this map's size, for attention masks."""


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network."""

    def __init__(
        self, width: int, config: QueryDecoderConfig, aligned: AlignedQueryConfig | None
    ) -> None:
        super().__init__()
        self.masked_attention = AttentionBlock(width, config.heads)
        self.self_attention = AttentionBlock(width, config.heads)
        # Table 3: aligned queries may have their own copies of these two.
        self.aligned_masked_attention = self.aligned_self_attention = None
        if aligned is not None and not aligned.share_masked_attention:
            self.aligned_masked_attention = AttentionBlock(width, config.heads)
        if aligned is not None and not aligned.share_self_attention:
            self.aligned_self_attention = AttentionBlock(width, config.heads)
        self.ffn = feed_forward(width, config.ffn_width)
        self.ffn_norm = nn.LayerNorm(width)

    def forward(
        self,
        x_BRE: Tensor,
        position_RE: Tensor,
        level: Level,
        attention_mask: Tensor,
        queries: int,
        aligned_mask: Tensor | None,
    ) -> Tensor:
        """queries: Q; attention_mask [B, 1, R, S]; aligned_mask [B, 1, A, R], None without aligned
        queries."""
        own = None if aligned_mask is None else self.aligned_masked_attention
        x_BRE = self._cross_attention(x_BRE, position_RE, level, attention_mask, queries, own)
        x_BRE = self._self_attention(x_BRE, position_RE, queries, aligned_mask)
        return self.ffn_norm(x_BRE + self.ffn(x_BRE))

    def _cross_attention(
        self,
        x_BRE: Tensor,
        position_RE: Tensor,
        level: Level,
        mask: Tensor,
        queries: int,
        own: AttentionBlock | None,
    ) -> Tensor:
        """own: the aligned queries' copy of the block, if they have one."""
        if own is None:
            return self.masked_attention(
                x_BRE, position_RE, level.memory_BSE, level.position_SE, mask
            )
        blocks = (self.masked_attention, own)
        rows = zip(
            blocks,
            _kinds(x_BRE, 1, queries),
            _kinds(position_RE, 0, queries),
            _kinds(mask, 2, queries),
            strict=True,
        )
        return torch.cat(
            [block(x, p, level.memory_BSE, level.position_SE, m) for block, x, p, m in rows], dim=1
        )

    def _self_attention(
        self, x_BRE: Tensor, position_RE: Tensor, queries: int, aligned_mask: Tensor | None
    ) -> Tensor:
        """Object queries never attend to aligned queries, so their results are the same with and
        without them."""
        objects_BQE, aligned_BAE = _kinds(x_BRE, 1, queries)
        position_QE, aligned_position_AE = _kinds(position_RE, 0, queries)
        objects_BQE = self.self_attention(objects_BQE, position_QE, objects_BQE, position_QE)
        if aligned_mask is None:
            return objects_BQE
        block = self.aligned_self_attention or self.self_attention
        aligned_BAE = block(aligned_BAE, aligned_position_AE, x_BRE, position_RE, aligned_mask)
        return torch.cat((objects_BQE, aligned_BAE), dim=1)


class QueryDecoder(nn.Module):
    """Object queries, and aligned queries in training, attend to the image level by level. The
    heads are applied before the first layer and after every layer."""

    def __init__(
        self,
        config: QueryDecoderConfig,
        width: int,
        heads: Heads,
        aligned: AlignedQueryConfig | None,
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(config.queries, width))
        self.query_position = nn.Parameter(torch.randn(config.queries, width))
        self.level_embedding = nn.Parameter(torch.randn(LEVELS, width))
        learned = aligned is not None and aligned.learned_position
        self.aligned_position = nn.Parameter(torch.randn(width)) if learned else None
        self.aligned_visible: Visible = "objects+set" if aligned is None else aligned.visible
        self.layers = nn.ModuleList(
            DecoderLayer(width, config, aligned) for _ in range(config.layers)
        )
        self.heads = heads

    def forward(self, features: PixelFeatures, aligned: AlignedQueries | None = None) -> Prediction:
        embedding_BEHW, queries = features.embedding_BEHW, self.query.shape[0]
        # With len(), an export would make the number of images a constant.
        x_BRE: Tensor = self.query.expand(embedding_BEHW.shape[0], -1, -1)
        position_RE: Tensor = self.query_position
        aligned_mask = None
        if aligned is not None:
            x_BRE = torch.cat((x_BRE, aligned.features_BAE.to(x_BRE.dtype)), dim=1)
            position_RE = torch.cat(
                (position_RE, self._aligned_position(aligned.features_BAE.shape[1]))
            )
            aligned_mask = _aligned_visibility(aligned, queries, self.aligned_visible)[:, None]

        levels = [
            _level(map_BEhw, level_embedding_E, embedding_BEHW)
            for map_BEhw, level_embedding_E in zip(
                features.levels, self.level_embedding, strict=True
            )
        ]
        outputs: list[tuple[Tensor, Tensor]] = [self.heads(x_BRE)]
        for index, layer in enumerate(self.layers):
            level = levels[index % LEVELS]
            _, mask_embedding_BRE = outputs[-1]
            if aligned is None or not aligned.attention:
                attention_mask = _attention_mask(mask_embedding_BRE, level.embedding_BES)
            else:
                objects_BQE, _ = _kinds(mask_embedding_BRE, 1, queries)
                objects = _attention_mask(objects_BQE, level.embedding_BES)
                attention_mask = torch.cat((objects, aligned.attention[index][:, None]), dim=2)
            x_BRE = layer(x_BRE, position_RE, level, attention_mask, queries, aligned_mask)
            outputs.append(self.heads(x_BRE))
        class_logits, mask_embeddings = zip(*outputs, strict=True)
        return Prediction(
            torch.stack(class_logits),
            torch.stack(mask_embeddings),
            embedding_BEHW,
            queries,
            aligned,
        )

    def _aligned_position(self, slots: int) -> Tensor:
        if self.aligned_position is None:
            return self.query_position.new_zeros(slots, self.query_position.shape[1])
        return self.aligned_position.expand(slots, -1)


def _level(map_BEhw: Tensor, level_embedding_E: Tensor, embedding_BEHW: Tensor) -> Level:
    width, h, w = map_BEhw.shape[1:]
    memory_BSE = map_BEhw.flatten(2).transpose(1, 2) + level_embedding_E
    position_SE = sine_position(h, w, width, map_BEhw.device)
    # Resizing is linear, so queries times the resized pixel embedding are the resized mask logits.
    with torch.no_grad():
        resized_BEhw = F.interpolate(
            embedding_BEHW, size=(h, w), mode="bilinear", align_corners=False
        )
    return Level(memory_BSE, position_SE, resized_BEhw.flatten(2))


def _kinds(x: Tensor, dim: int, queries: int) -> tuple[Tensor, Tensor]:
    """The object rows, and the aligned rows."""
    return x.narrow(dim, 0, queries), x.narrow(dim, queries, x.shape[dim] - queries)


@torch.no_grad()
def _attention_mask(mask_embedding_BRE: Tensor, embedding_BES: Tensor) -> Tensor:
    """-> [B, 1, R, S]: a row attends to the foreground of its own mask; to everything, if that is
    empty."""
    visible_BRS = torch.bmm(mask_embedding_BRE, embedding_BES.to(mask_embedding_BRE.dtype)) >= 0
    return (visible_BRS | ~visible_BRS.any(dim=2, keepdim=True))[:, None]


def _aligned_visibility(aligned: AlignedQueries, queries: int, visible: Visible) -> Tensor:
    """-> [B, A, R]: the object queries and (live) aligned queries to which an aligned query
    attends."""
    set_BA, slots = aligned.set_BA, aligned.set_BA.shape[1]
    others = aligned.live_BA[:, None, :].expand(-1, slots, -1)
    if visible != "all":
        others = others & (set_BA[:, :, None] == set_BA[:, None, :])
    if visible == "set":
        # Padding needs a key, too, or softmax gives NaN.
        others = others | torch.eye(slots, dtype=torch.bool, device=set_BA.device)
    objects = others.new_full((*set_BA.shape, queries), visible != "set")
    return torch.cat((objects, others), dim=2)
