"""The names of our tensors in other projects: in Mask2Former's own code (on detectron2) and in
Hugging Face's.

A row of a table names a module or a parameter in all three: ours, Mask2Former's, Hugging Face's;
each without the table's prefix. `#` is any number; `[0]`, `[1]`, `[2]` are the thirds (query, key,
value) of a packed attention matrix. Hugging Face's names are those of its files, which version 5
keeps while its modules have new ones.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

Project = Literal["mask2former", "huggingface"]
Row = tuple[str, str, str]
COLUMN = {"alignmask": 0, "mask2former": 1, "huggingface": 2}


def _rows(ours: str, mask2former: str, huggingface: str, table: str) -> list[Row]:
    """The rows of a table, each column with its prefix."""
    rows: list[Row] = []
    for line in table.strip().splitlines():
        a, b, c = line.split()
        rows.append((ours + a, mask2former + b, huggingface + c))
    return rows


PIXEL_DECODER = [
    *_rows(
        "pixel_decoder.", "sem_seg_head.pixel_decoder.", "model.pixel_level_module.decoder.",
        """
        project.#.#      input_proj.#.#           input_projections.#.#
        level_embedding  transformer.level_embed  level_embed
        lateral.0        adapter_1                adapter_1.0
        lateral.1        adapter_1.norm           adapter_1.1
        fuse.0           layer_1                  layer_1.0
        fuse.1           layer_1.norm             layer_1.1
        embed            mask_features            mask_projection
        """,
    ),
    *_rows(
        "pixel_decoder.layers.#.",
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.#.",
        "model.pixel_level_module.decoder.encoder.layers.#.",
        """
        attention.value    self_attn.value_proj         self_attn.value_proj
        attention.offsets  self_attn.sampling_offsets   self_attn.sampling_offsets
        attention.weights  self_attn.attention_weights  self_attn.attention_weights
        attention.output   self_attn.output_proj        self_attn.output_proj
        attention_norm     norm1                        self_attn_layer_norm
        ffn.0              linear1                      fc1
        ffn.2              linear2                      fc2
        ffn_norm           norm2                        final_layer_norm
        """,
    ),
]  # fmt: skip

QUERY_DECODER = [
    *_rows(
        "query_decoder.", "sem_seg_head.predictor.", "model.transformer_module.",
        """
        query            query_feat.weight    queries_features.weight
        query_position   query_embed.weight   queries_embedder.weight
        level_embedding  level_embed.weight   level_embed.weight
        heads.norm       decoder_norm         decoder.layernorm
        heads.mask.0     mask_embed.layers.0  decoder.mask_predictor.mask_embedder.0.0
        heads.mask.2     mask_embed.layers.1  decoder.mask_predictor.mask_embedder.1.0
        heads.mask.4     mask_embed.layers.2  decoder.mask_predictor.mask_embedder.2.0
        """,
    ),
    *_rows("query_decoder.heads.", "sem_seg_head.predictor.", "", "classify  class_embed  class_predictor"),
    *_rows(
        "query_decoder.layers.#.masked_attention.",
        "sem_seg_head.predictor.transformer_cross_attention_layers.#.",
        "model.transformer_module.decoder.layers.#.",
        """
        query   multihead_attn.in_proj[0]  cross_attn.in_proj[0]
        key     multihead_attn.in_proj[1]  cross_attn.in_proj[1]
        value   multihead_attn.in_proj[2]  cross_attn.in_proj[2]
        output  multihead_attn.out_proj    cross_attn.out_proj
        norm    norm                       cross_attn_layer_norm
        """,
    ),
    *_rows(
        "query_decoder.layers.#.self_attention.",
        "sem_seg_head.predictor.transformer_self_attention_layers.#.",
        "model.transformer_module.decoder.layers.#.",
        """
        query   self_attn.in_proj[0]  self_attn.q_proj
        key     self_attn.in_proj[1]  self_attn.k_proj
        value   self_attn.in_proj[2]  self_attn.v_proj
        output  self_attn.out_proj    self_attn.out_proj
        norm    norm                  self_attn_layer_norm
        """,
    ),
    *_rows(
        "query_decoder.layers.#.",
        "sem_seg_head.predictor.transformer_ffn_layers.#.",
        "model.transformer_module.decoder.layers.#.",
        """
        ffn.0     linear1  fc1
        ffn.2     linear2  fc2
        ffn_norm  norm     final_layer_norm
        """,
    ),
]  # fmt: skip

FACE = "model.pixel_level_module.encoder."
SWIN = [
    *_rows(
        "backbone.body.patch_embed.", "backbone.patch_embed.", f"{FACE}embeddings.",
        """
        proj  proj  patch_embeddings.projection
        norm  norm  norm
        """,
    ),
    *_rows(
        "backbone.body.layers_#.blocks.#.", "backbone.layers.#.blocks.#.", f"{FACE}encoder.layers.#.blocks.#.",
        """
        norm1        norm1        layernorm_before
        attn.qkv[0]  attn.qkv[0]  attention.self.query
        attn.qkv[1]  attn.qkv[1]  attention.self.key
        attn.qkv[2]  attn.qkv[2]  attention.self.value
        attn.proj    attn.proj    attention.output.dense
        norm2        norm2        layernorm_after
        mlp.fc1      mlp.fc1      intermediate.dense
        mlp.fc2      mlp.fc2      output.dense
        attn.relative_position_bias_table  attn.relative_position_bias_table  attention.self.relative_position_bias_table
        """,
    ),
]  # fmt: skip
# Timm merges patches at the beginning of a stage, the others at the end of the one before.
for s in range(4):
    SWIN.append(
        (f"backbone.norms.{s}", f"backbone.norm{s}", f"{FACE}hidden_states_norms.stage{s + 1}")
    )
    SWIN += _rows(
        f"backbone.body.layers_{s + 1}.", f"backbone.layers.{s}.", f"{FACE}encoder.layers.{s}.",
        """
        downsample.norm       downsample.norm       downsample.norm
        downsample.reduction  downsample.reduction  downsample.reduction
        """,
    )  # fmt: skip

RESNET = _rows(
    "backbone.body.", "backbone.stem.", f"{FACE}embedder.embedder.",
    """
    conv1  conv1       convolution
    bn1    conv1.norm  normalization
    """,
)  # fmt: skip
for s in range(4):
    RESNET += _rows(
        f"backbone.body.layer{s + 1}.#.", f"backbone.res{s + 2}.#.", f"{FACE}encoder.stages.{s}.layers.#.",
        """
        conv1         conv1          layer.0.convolution
        bn1           conv1.norm     layer.0.normalization
        conv2         conv2          layer.1.convolution
        bn2           conv2.norm     layer.1.normalization
        conv3         conv3          layer.2.convolution
        bn3           conv3.norm     layer.2.normalization
        downsample.0  shortcut       shortcut.convolution
        downsample.1  shortcut.norm  shortcut.normalization
        """,
    )  # fmt: skip

TIMM: list[Row] = [("backbone.body.*", "", f"{FACE}_backbone.*")]
"""Hugging Face's wrapper of any backbone from timm, whose names are ours. `*` is the rest of the
name."""

Backbones = Literal["native", "timm"]
BACKBONES: dict[Backbones, list[Row]] = {"native": SWIN + RESNET, "timm": TIMM}

LEFT_OUT = (
    r"criterion\.empty_weight",  # a setting of the loss
    r".*\.relative_position_index",  # follows from the window's size
    re.escape(FACE) + r"layernorm\.(weight|bias)",  # of Swin's classifier: never applied here
)
"""Tensors of checkpoints that nothing is computed with."""

_BLOCK = r"(\.blocks\.\d+\.)"
RENAMED: dict[Project, list[tuple[str, str]]] = {
    "mask2former": [
        (r"^module\.", ""),  # written by a distributed process
        (r"predictor\.static_query\.", "predictor.query_feat."),  # in the published checkpoints
        # Older still.
        (r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", "sem_seg_head.pixel_decoder."),
    ],
    "huggingface": [  # version 5 in memory -> the names in files
        (rf"^({re.escape(FACE)})swin\.", r"\1"),
        (rf"{_BLOCK}attention\.q_proj\.", r"\1attention.self.query."),
        (rf"{_BLOCK}attention\.k_proj\.", r"\1attention.self.key."),
        (rf"{_BLOCK}attention\.v_proj\.", r"\1attention.self.value."),
        (rf"{_BLOCK}attention\.o_proj\.", r"\1attention.output.dense."),
        (rf"{_BLOCK}attention\.relative_position_bias\.", r"\1attention.self."),
        (rf"{_BLOCK}mlp\.fc1\.", r"\1intermediate.dense."),
        (rf"{_BLOCK}mlp\.fc2\.", r"\1output.dense."),
    ],
}
"""Other names under which the same tensors are found."""


def to_ours(
    tensors: dict[str, Tensor], project: Project, backbone: Backbones = "native"
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under our names, and the names for which we have none."""
    kept = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED[project]:
            name = re.sub(pattern, replacement, name)
        if not any(re.fullmatch(pattern, name) for pattern in LEFT_OUT):
            kept[name] = tensor
    return _rename(kept, project, "alignmask", backbone)


def from_ours(
    tensors: dict[str, Tensor], project: Project, backbone: Backbones = "native"
) -> tuple[dict[str, Tensor], list[str]]:
    """-> our tensors under the project's names, and our names that it has none for."""
    return _rename(tensors, "alignmask", project, backbone)


def _rename(
    tensors: dict[str, Tensor], source: str, target: str, backbone: Backbones
) -> tuple[dict[str, Tensor], list[str]]:
    rows = PIXEL_DECODER + QUERY_DECODER + BACKBONES[backbone]
    rules = [
        (_pattern(row[COLUMN[source]]), re.sub(r"[#*]", "{}", row[COLUMN[target]])) for row in rows
    ]
    renamed, unknown = {}, []
    for name, tensor in _unpack(tensors).items():
        for pattern, template in rules:
            if match := pattern.fullmatch(name):
                *parts, ending = match.groups(default="")
                renamed[template.format(*parts) + ending] = tensor
                break
        else:
            unknown.append(name)
    return _pack(renamed), unknown


def _pattern(name: str) -> re.Pattern[str]:
    body = re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", "(.+?)")
    return re.compile(body + r"(\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?")


def _unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """attn.qkv.weight -> attn.qkv[0].weight, ...; attn.in_proj_weight -> attn.in_proj[0].weight,
    ..."""
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(r"(.*\.(?:qkv|in_proj))[._](weight|bias)", name)
        if packed and tensor.ndim and tensor.shape[0] % 3 == 0:
            unpacked |= {
                f"{packed[1]}[{i}].{packed[2]}": part for i, part in enumerate(tensor.chunk(3))
            }
        else:
            unpacked[name] = tensor
    return unpacked


def _pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_unpack`; a third that is missing leaves a matrix of a wrong shape, or
    none."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first = re.fullmatch(r"(.*)\[0\]\.(weight|bias)", name)
        if first:
            thirds = [tensors.get(f"{first[1]}[{i}].{first[2]}") for i in range(3)]
            whole = first[1] + ("_" if first[1].endswith("in_proj") else ".") + first[2]
            packed[whole] = torch.cat([part for part in thirds if part is not None])
        elif not re.fullmatch(r".*\[[12]\]\.(weight|bias)", name):
            packed[name] = tensor
    return packed
