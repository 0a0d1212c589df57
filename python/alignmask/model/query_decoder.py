"""Masked-attention transformer decoder (section 2.1; Mask2Former), with aligned queries beside the object queries.

B images, R rows = Q object queries, then A aligned ones, S tokens of one level, E channels, L outputs, h x w a map's size.
Attention masks are boolean, True where a row may look, broadcast over heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask.config import AlignedQueryConfig, QueryDecoderConfig, Visible
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.heads import Heads, Prediction
from alignmask.model.layers import sine_position
from alignmask.model.pixel_decoder import PixelFeatures

LEVELS = 3


class AttentionBlock(nn.Module):
    """Multi-head attention, residual, post-norm. Positions are added to queries and keys, never to values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        for linear in (self.query, self.key, self.value, self.output):
            # Mask2Former initialises query, key and value as one matrix, whose three-fold outputs lower the bound.
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


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network."""

    def __init__(self, width: int, config: QueryDecoderConfig, aligned: AlignedQueryConfig | None) -> None:
        super().__init__()
        self.masked_attention = AttentionBlock(width, config.heads)
        self.self_attention = AttentionBlock(width, config.heads)
        # Table 3: aligned queries may have their own copies of these two.
        self.aligned_masked_attention = self.aligned_self_attention = None
        if aligned is not None and not aligned.share_masked_attention:
            self.aligned_masked_attention = AttentionBlock(width, config.heads)
        if aligned is not None and not aligned.share_self_attention:
            self.aligned_self_attention = AttentionBlock(width, config.heads)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.ReLU(inplace=True), nn.Linear(config.ffn_width, width)
        )
        self.ffn_norm = nn.LayerNorm(width)
        for linear in self.ffn:
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x_BRE: Tensor,
        position_RE: Tensor,
        memory_BSE: Tensor,
        memory_position_SE: Tensor,
        attention_mask: Tensor,
        queries: int,
        aligned_mask: Tensor | None,
    ) -> Tensor:
        """queries: Q; attention_mask [B, 1, R, S]; aligned_mask [B, 1, A, R], None without aligned queries."""
        if self.aligned_masked_attention is None or aligned_mask is None:
            x_BRE = self.masked_attention(x_BRE, position_RE, memory_BSE, memory_position_SE, attention_mask)
        else:
            blocks = (self.masked_attention, self.aligned_masked_attention)
            parts = zip(
                blocks, _groups(x_BRE, 1, queries), _groups(position_RE, 0, queries), _groups(attention_mask, 2, queries),
                strict=True,
            )  # fmt: skip
            x_BRE = torch.cat([block(x, p, memory_BSE, memory_position_SE, m) for block, x, p, m in parts], dim=1)

        # Object queries never see an aligned query: what they compute is the same with and without them.
        objects, position = x_BRE[:, :queries], position_RE[:queries]
        attended = self.self_attention(objects, position, objects, position)
        if aligned_mask is not None:
            block = self.aligned_self_attention or self.self_attention
            aligned = block(x_BRE[:, queries:], position_RE[queries:], x_BRE, position_RE, aligned_mask)
            attended = torch.cat((attended, aligned), dim=1)
        return self.ffn_norm(attended + self.ffn(attended))


class QueryDecoder(nn.Module):
    """Learned object queries (and aligned ones) look at the image level by level; heads read them after every layer."""

    def __init__(
        self, config: QueryDecoderConfig, width: int, heads: Heads, aligned: AlignedQueryConfig | None
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(config.queries, width))
        self.query_position = nn.Parameter(torch.randn(config.queries, width))
        self.level_embedding = nn.Parameter(torch.randn(LEVELS, width))
        learned = aligned is not None and aligned.learned_position
        self.aligned_position = nn.Parameter(torch.randn(width)) if learned else None
        self.aligned_visible: Visible = "objects+set" if aligned is None else aligned.visible
        self.layers = nn.ModuleList(DecoderLayer(width, config, aligned) for _ in range(config.layers))
        self.heads = heads

    def forward(self, features: PixelFeatures, aligned: AlignedQueries | None = None) -> Prediction:
        embedding_BEHW = features.embedding_BEHW
        batch, queries = embedding_BEHW.shape[0], self.query.shape[0]
        x_BRE: Tensor = self.query.expand(batch, -1, -1)
        position_RE: Tensor = self.query_position
        aligned_mask = None
        if aligned is not None:
            x_BRE = torch.cat((x_BRE, aligned.features_BAE.to(x_BRE.dtype)), dim=1)
            position_RE = torch.cat((position_RE, self._aligned_position(aligned.features_BAE.shape[1])))
            aligned_mask = _aligned_visibility(aligned, queries, self.aligned_visible)[:, None]

        memories, positions, coarse_embeddings = [], [], []
        for level, level_embedding in zip(features.levels, self.level_embedding, strict=True):
            height, width = level.shape[2:]
            memories.append(level.flatten(2).transpose(1, 2) + level_embedding)
            positions.append(sine_position(height, width, level.shape[1], level.device))
            # Resizing is linear: contracting queries with the resized pixel embedding gives the resized mask logits.
            with torch.no_grad():
                resized = F.interpolate(embedding_BEHW, size=(height, width), mode="bilinear", align_corners=False)
                coarse_embeddings.append(resized.flatten(2))

        class_logits, mask_embedding = self.heads(x_BRE)
        outputs = [(class_logits, mask_embedding)]
        for index, layer in enumerate(self.layers):
            i = index % LEVELS
            attention_mask = _attention_mask(mask_embedding, coarse_embeddings[i])
            x_BRE = layer(x_BRE, position_RE, memories[i], positions[i], attention_mask, queries, aligned_mask)
            class_logits, mask_embedding = self.heads(x_BRE)
            outputs.append((class_logits, mask_embedding))
        classes, masks = zip(*outputs, strict=True)
        return Prediction(torch.stack(classes), torch.stack(masks), embedding_BEHW, queries, aligned)

    def _aligned_position(self, slots: int) -> Tensor:
        if self.aligned_position is None:
            return self.query_position.new_zeros(slots, self.query_position.shape[1])
        return self.aligned_position.expand(slots, -1)


def _groups(x: Tensor, dim: int, queries: int) -> tuple[Tensor, Tensor]:
    """Object rows, aligned rows."""
    return x.narrow(dim, 0, queries), x.narrow(dim, queries, x.shape[dim] - queries)


@torch.no_grad()
def _attention_mask(mask_embedding_BRE: Tensor, embedding_BES: Tensor) -> Tensor:
    """-> [B, 1, R, S]: a row looks where its own mask is foreground; everywhere, if it is foreground nowhere."""
    visible_BRS = torch.bmm(mask_embedding_BRE, embedding_BES.to(mask_embedding_BRE.dtype)) >= 0
    return (visible_BRS | ~visible_BRS.any(dim=2, keepdim=True))[:, None]


def _aligned_visibility(aligned: AlignedQueries, queries: int, visible: Visible) -> Tensor:
    """-> [B, A, R]: which object queries and (live) aligned queries an aligned query sees."""
    set_BA, slots = aligned.set_BA, aligned.set_BA.shape[1]
    others = aligned.live_BA[:, None, :].expand(-1, slots, -1)
    if visible != "all":
        others = others & (set_BA[:, :, None] == set_BA[:, None, :])
    if visible == "set":
        others = others | torch.eye(slots, dtype=torch.bool, device=set_BA.device)  # padding, too, must see something
    objects = others.new_full((*set_BA.shape, queries), visible != "set")
    return torch.cat((objects, others), dim=2)
