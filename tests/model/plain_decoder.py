"""The query decoder once more, in plain form: row by row, head by head, with full-size masks, as
the papers say it.

It takes the weights from the module under test and nothing else. B images, R rows = object queries,
then aligned ones, S tokens of one level, E channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask.config import Visible
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.layers import sine_position
from alignmask.model.pixel_decoder import PixelFeatures
from alignmask.model.query_decoder import AttentionBlock, QueryDecoder


def decode(
    decoder: QueryDecoder,
    features: PixelFeatures,
    aligned: AlignedQueries,
    heads: int,
    visible: Visible,
    own_masked: bool = False,
    own_self: bool = False,
) -> tuple[Tensor, Tensor]:
    """-> class logits [L, B, R, C] and mask logits [L, B, R, H, W] of all outputs.

    heads, visible, own_masked and own_self say what the configuration asked for: "own" are an
    aligned query's own copies of an attention block (Table 3).
    """
    images = [
        _decode_image(decoder, features, aligned, b, heads, visible, own_masked, own_self)
        for b in range(len(features.embedding_BEHW))
    ]
    return torch.stack([c for c, _ in images], dim=1), torch.stack([m for _, m in images], dim=1)


def _decode_image(
    decoder: QueryDecoder,
    features: PixelFeatures,
    aligned: AlignedQueries,
    b: int,
    heads: int,
    visible: Visible,
    own_masked: bool,
    own_self: bool,
) -> tuple[Tensor, Tensor]:
    embedding_EHW = features.embedding_BEHW[b]
    slots = aligned.set_BA.shape[1]
    objects = len(decoder.query)
    rows = range(objects + slots)
    x_RE = torch.cat((decoder.query, aligned.features_BAE[b]))
    learned = decoder.aligned_position
    of_aligned = torch.zeros_like(x_RE[0]) if learned is None else learned
    position_RE = torch.stack([*decoder.query_position, *[of_aligned] * slots])
    # What a row sees of the other rows.
    sees = [
        [r for r in rows if _sees(row, r, objects, aligned.set_BA[b].tolist(), visible)]
        for row in rows
    ]

    classes, masks = _read(decoder, x_RE, embedding_EHW)
    outputs = [(classes, masks)]
    for index, layer in enumerate(decoder.layers):
        level = index % 3
        map_Ehw = features.levels[level][b]
        memory_SE = map_Ehw.flatten(1).T + decoder.level_embedding[level]
        memory_position_SE = sine_position(*map_Ehw.shape[1:], map_Ehw.shape[0]).to(memory_SE)
        small_RS = F.interpolate(
            masks[None], size=map_Ehw.shape[1:], mode="bilinear", align_corners=False
        )[0].flatten(1)
        looked = []
        for row in rows:
            block = (
                layer.aligned_masked_attention
                if own_masked and row >= objects
                else layer.masked_attention
            )
            inside = (small_RS[row].sigmoid() >= 0.5).nonzero().flatten().tolist()
            tokens = inside or list(range(len(memory_SE)))
            looked.append(
                _attend(
                    block,
                    x_RE[row],
                    position_RE[row],
                    memory_SE[tokens],
                    memory_position_SE[tokens],
                    heads,
                )
            )
        x_RE = torch.stack(looked)
        talked = []
        for row in rows:
            block = (
                layer.aligned_self_attention
                if own_self and row >= objects
                else layer.self_attention
            )
            talked.append(
                _attend(
                    block,
                    x_RE[row],
                    position_RE[row],
                    x_RE[sees[row]],
                    position_RE[sees[row]],
                    heads,
                )
            )
        x_RE = torch.stack(talked)
        first, second = layer.ffn[0], layer.ffn[2]
        inner = (x_RE @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
        x_RE = _norm(layer.ffn_norm, x_RE + inner)
        classes, masks = _read(decoder, x_RE, embedding_EHW)
        outputs.append((classes, masks))
    return torch.stack([c for c, _ in outputs]), torch.stack([m for _, m in outputs])


def _sees(row: int, other: int, objects: int, sets: list[int], visible: Visible) -> bool:
    """Object queries see object queries; aligned ones see what `visible` says. No query sees
    another's padding (set -1)."""
    if row < objects:
        return other < objects
    if other < objects:
        return visible != "set"
    own, theirs = sets[row - objects], sets[other - objects]
    if theirs == -1:
        return visible == "set" and row == other
    return visible == "all" or own == theirs


def _attend(
    block: AttentionBlock,
    x_E: Tensor,
    position_E: Tensor,
    memory_SE: Tensor,
    position_SE: Tensor,
    heads: int,
) -> Tensor:
    query = block.query.weight @ (x_E + position_E) + block.query.bias
    keys = (memory_SE + position_SE) @ block.key.weight.T + block.key.bias
    values = memory_SE @ block.value.weight.T + block.value.bias
    found = []
    for q, k, v in zip(
        query.chunk(heads), keys.chunk(heads, 1), values.chunk(heads, 1), strict=True
    ):
        weights = (k @ q / len(q) ** 0.5).exp()
        found.append(weights / weights.sum() @ v)
    return _norm(block.norm, x_E + block.output.weight @ torch.cat(found) + block.output.bias)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    )


def _read(decoder: QueryDecoder, x_RE: Tensor, embedding_EHW: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits and full-size mask logits."""
    x_RE = _norm(decoder.heads.norm, x_RE)
    classes = x_RE @ decoder.heads.classify.weight.T + decoder.heads.classify.bias
    for linear in (decoder.heads.mask[0], decoder.heads.mask[2]):
        x_RE = (x_RE @ linear.weight.T + linear.bias).clamp(min=0)
    last = decoder.heads.mask[4]
    masks = x_RE @ last.weight.T + last.bias
    return classes, (masks @ embedding_EHW.flatten(1)).unflatten(1, embedding_EHW.shape[1:])
