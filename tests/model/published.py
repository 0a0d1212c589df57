"""Every name and shape in the published Mask2Former checkpoints, written down from the published
architecture (detectron2's ResNets, Swin Transformers, the MSDeformAttn pixel decoder, the
masked-attention decoder). Independent of the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Swin:
    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


# Backbone (blocks of a ResNet's stages, or a Swin), queries.
MODELS: dict[str, tuple[tuple[int, ...] | Swin, int]] = {
    "R50": ((3, 4, 6, 3), 100),
    "R101": ((3, 4, 23, 3), 100),
    "Swin-T": (Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7), 100),
    "Swin-S": (Swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 7), 100),
    "Swin-B": (Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 12), 100),
    "Swin-L": (Swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12), 200),
}
TIMM = {
    "R50": "resnet50", "R101": "resnet101", "Swin-T": "swin_tiny_patch4_window7_224",
    "Swin-S": "swin_small_patch4_window7_224", "Swin-B": "swin_base_patch4_window12_384",
    "Swin-L": "swin_large_patch4_window12_384",
}  # fmt: skip
PREDICTOR, PIXELS = "sem_seg_head.predictor", "sem_seg_head.pixel_decoder"


def shapes(model: str, classes: int = 80) -> Shapes:
    """Name -> shape of all tensors, as the published code names them."""
    backbone, queries = MODELS[model]
    if isinstance(backbone, Swin):
        table, channels = _swin(backbone), [backbone.width * 2**s for s in range(4)]
    else:
        table, channels = _resnet(backbone), [256, 512, 1024, 2048]
    return {
        **table,
        **_pixel_decoder(channels),
        **_predictor(queries, classes),
        "criterion.empty_weight": (classes + 1,),
    }


def checkpoint(model: str, seed: int = 0, classes: int = 80) -> dict[str, Tensor]:
    """Random tensors of these names and shapes, with the names that the published files have."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(model, classes).items():
        name = name.replace("predictor.query_feat", "predictor.static_query")
        if name.endswith("relative_position_index"):
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            tensors[name] = torch.empty(shape).uniform_(0.1, 0.2, generator=generator)
    return tensors


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _convolution(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    """Followed by a frozen BatchNorm."""
    statistics = {f"{name}.norm.running_{which}": (outputs,) for which in ("mean", "var")}
    return {
        f"{name}.weight": (outputs, inputs, kernel, kernel),
        **_norm(f"{name}.norm", outputs),
        **statistics,
    }


def _resnet(depths: tuple[int, ...]) -> Shapes:
    table = _convolution("backbone.stem.conv1", 3, 64, 7)
    inputs = 64
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        for block in range(depth):
            name = f"backbone.res{stage + 2}.{block}"
            if block == 0:
                table |= _convolution(f"{name}.shortcut", inputs, 4 * inner, 1)
            table |= _convolution(f"{name}.conv1", inputs, inner, 1)
            table |= _convolution(f"{name}.conv2", inner, inner, 3)
            table |= _convolution(f"{name}.conv3", inner, 4 * inner, 1)
            inputs = 4 * inner
    return table


def _swin(swin: Swin) -> Shapes:
    table: Shapes = {
        "backbone.patch_embed.proj.weight": (swin.width, 3, 4, 4),
        "backbone.patch_embed.proj.bias": (swin.width,),
        **_norm("backbone.patch_embed.norm", swin.width),
    }
    for stage, (depth, heads) in enumerate(zip(swin.depths, swin.heads, strict=True)):
        width = swin.width * 2**stage
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}"
            table |= _norm(f"{name}.norm1", width)
            table[f"{name}.attn.relative_position_bias_table"] = ((2 * swin.window - 1) ** 2, heads)
            table[f"{name}.attn.relative_position_index"] = (swin.window**2, swin.window**2)
            table |= _linear(f"{name}.attn.qkv", width, 3 * width)
            table |= _linear(f"{name}.attn.proj", width, width)
            table |= _norm(f"{name}.norm2", width)
            table |= _linear(f"{name}.mlp.fc1", width, 4 * width)
            table |= _linear(f"{name}.mlp.fc2", 4 * width, width)
        if stage < 3:
            name = f"backbone.layers.{stage}.downsample"
            table |= _linear(f"{name}.reduction", 4 * width, 2 * width, bias=False)
            table |= _norm(f"{name}.norm", 4 * width)
        table |= _norm(f"backbone.norm{stage}", width)
    return table


def _pixel_decoder(channels: list[int]) -> Shapes:
    table: Shapes = {}
    for level, inputs in enumerate(channels[:0:-1]):  # strides 32, 16, 8
        table[f"{PIXELS}.input_proj.{level}.0.weight"] = (256, inputs, 1, 1)
        table[f"{PIXELS}.input_proj.{level}.0.bias"] = (256,)
        table |= _norm(f"{PIXELS}.input_proj.{level}.1", 256)
    table[f"{PIXELS}.transformer.level_embed"] = (3, 256)
    for layer in range(6):
        name = f"{PIXELS}.transformer.encoder.layers.{layer}"
        table |= _linear(f"{name}.self_attn.sampling_offsets", 256, 8 * 3 * 4 * 2)
        table |= _linear(f"{name}.self_attn.attention_weights", 256, 8 * 3 * 4)
        table |= _linear(f"{name}.self_attn.value_proj", 256, 256)
        table |= _linear(f"{name}.self_attn.output_proj", 256, 256)
        table |= _norm(f"{name}.norm1", 256)
        table |= _linear(f"{name}.linear1", 256, 1024)
        table |= _linear(f"{name}.linear2", 1024, 256)
        table |= _norm(f"{name}.norm2", 256)
    table[f"{PIXELS}.mask_features.weight"] = (256, 256, 1, 1)
    table[f"{PIXELS}.mask_features.bias"] = (256,)
    table[f"{PIXELS}.adapter_1.weight"] = (256, channels[0], 1, 1)
    table |= _norm(f"{PIXELS}.adapter_1.norm", 256)
    table[f"{PIXELS}.layer_1.weight"] = (256, 256, 3, 3)
    table |= _norm(f"{PIXELS}.layer_1.norm", 256)
    return table


def _predictor(queries: int, classes: int) -> Shapes:
    table: Shapes = {}
    for layer in range(9):
        for kind, inner in (("self", "self_attn"), ("cross", "multihead_attn")):
            name = f"{PREDICTOR}.transformer_{kind}_attention_layers.{layer}"
            table[f"{name}.{inner}.in_proj_weight"] = (768, 256)
            table[f"{name}.{inner}.in_proj_bias"] = (768,)
            table |= _linear(f"{name}.{inner}.out_proj", 256, 256)
            table |= _norm(f"{name}.norm", 256)
        name = f"{PREDICTOR}.transformer_ffn_layers.{layer}"
        table |= _linear(f"{name}.linear1", 256, 2048)
        table |= _linear(f"{name}.linear2", 2048, 256)
        table |= _norm(f"{name}.norm", 256)
    table |= _norm(f"{PREDICTOR}.decoder_norm", 256)
    table[f"{PREDICTOR}.query_feat.weight"] = (queries, 256)
    table[f"{PREDICTOR}.query_embed.weight"] = (queries, 256)
    table[f"{PREDICTOR}.level_embed.weight"] = (3, 256)
    table |= _linear(f"{PREDICTOR}.class_embed", 256, classes + 1)
    for layer in range(3):
        table |= _linear(f"{PREDICTOR}.mask_embed.layers.{layer}", 256, 256)
    return table
