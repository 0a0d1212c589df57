"""The shape of another project's model <-> our config: from tensors, and from and to Hugging Face's
config.json."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from alignmask.config import (
    BackboneConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
    SwinConfig,
)
from alignmask.pretrained.names import Backbones
from alignmask.safe_load import CheckpointError

LEVELS, POINTS = 3, 4
"""Of the deformable attention: constants of both projects."""

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18.tv_in1k",
    ("basic", (3, 4, 6, 3)): "resnet34.tv_in1k",
    ("bottleneck", (3, 4, 6, 3)): "resnet50.tv_in1k",
    ("bottleneck", (3, 4, 23, 3)): "resnet101.tv_in1k",
    ("bottleneck", (3, 8, 36, 3)): "resnet152.tv_in1k",
}
SWINS = {
    SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 7): "swin_tiny_patch4_window7_224.ms_in1k",
    SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), 7): "swin_small_patch4_window7_224.ms_in1k",
    SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 7): "swin_base_patch4_window7_224.ms_in22k",
    SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 12): "swin_base_patch4_window12_384.ms_in22k",
    SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 7): "swin_large_patch4_window7_224.ms_in22k",
    SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 12): "swin_large_patch4_window12_384.ms_in22k",
}


def resnet_of(name: str) -> tuple[str, tuple[int, ...]] | None:
    """(kind of block, blocks per stage) of a plain ResNet by timm's name, None for any other
    model."""
    plain = name.split(".")[0]
    return next((shape for shape, known in RESNETS.items() if known.split(".")[0] == plain), None)


def swin_of(backbone: BackboneConfig) -> SwinConfig | None:
    """The shape of a Swin Transformer that is one of `SWINS` or says its shape, None for any other
    model."""
    if backbone.swin is not None:
        return backbone.swin
    plain = backbone.name.split(".")[0]
    return next((shape for shape, known in SWINS.items() if known.split(".")[0] == plain), None)


def _swin(shape: SwinConfig) -> BackboneConfig:
    if shape in SWINS:
        return BackboneConfig(SWINS[shape], pretrained=False)
    return BackboneConfig("swin_tiny_patch4_window7_224", swin=shape, pretrained=False)


def _resnet(kind: str, depths: tuple[int, ...]) -> BackboneConfig:
    if (kind, depths) not in RESNETS:
        raise CheckpointError(
            f"a ResNet of {depths} {kind} blocks is not known: only 18, 34, 50, 101 and 152 layers "
            "are"
        )
    return BackboneConfig(RESNETS[kind, depths], pretrained=False)


# ---- from the shapes of tensors


def config_from_tensors(tensors: dict[str, Tensor]) -> ModelConfig:
    """The baseline that tensors with our names fit, as far as shapes tell; heads and points are
    Mask2Former's (8, 4; one number of heads for both decoders)."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"not a Mask2Former checkpoint: it has nothing for our {name}")
        return tuple(tensors[name].shape)

    queries, width = shape("query_decoder.query")
    heads = shape("pixel_decoder.layers.0.attention.offsets.bias")[0] // (LEVELS * POINTS * 2)
    return ModelConfig(
        num_classes=shape("query_decoder.heads.classify.bias")[0] - 1,
        classification="softmax",
        score="class*mask",
        backbone=_backbone_from_tensors(tensors),
        pixel_decoder=PixelDecoderConfig(
            width=width,
            layers=_count(tensors, r"pixel_decoder\.layers\.(\d+)\..*"),
            heads=heads,
            points=POINTS,
            ffn_width=shape("pixel_decoder.layers.0.ffn.0.bias")[0],
        ),
        query_decoder=QueryDecoderConfig(
            queries=queries,
            layers=_count(tensors, r"query_decoder\.layers\.(\d+)\..*"),
            heads=heads,
            ffn_width=shape("query_decoder.layers.0.ffn.0.bias")[0],
        ),
        aligned_queries=None,
        detections=100,
    )


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})


def _backbone_from_tensors(tensors: dict[str, Tensor]) -> BackboneConfig:
    body = "backbone.body."
    if f"{body}conv1.weight" in tensors:
        depths = tuple(
            _count(tensors, rf"{body}layer{s}\.(\d+)\.conv1\.weight") for s in range(1, 5)
        )
        return _resnet(
            "bottleneck" if f"{body}layer1.0.conv3.weight" in tensors else "basic", depths
        )
    tables = [
        tensors.get(f"{body}layers_{s}.blocks.0.attn.relative_position_bias_table")
        for s in range(4)
    ]
    patches = tensors.get(f"{body}patch_embed.proj.weight")
    if patches is None or any(table is None or table.ndim != 2 for table in tables):
        raise CheckpointError(
            "not a Mask2Former checkpoint: its backbone is neither a ResNet nor a Swin Transformer"
        )
    depths = tuple(_count(tensors, rf"{body}layers_{s}\.blocks\.(\d+)\..*") for s in range(4))
    heads = tuple(int(table.shape[1]) for table in tables if table is not None)
    assert tables[0] is not None
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2  # a table has (2 window - 1)^2 rows
    return _swin(SwinConfig(int(patches.shape[0]), _four(depths), _four(heads), window))


def _four(numbers: tuple[int, ...] | list[int]) -> tuple[int, int, int, int]:
    a, b, c, d = numbers
    return a, b, c, d


# ---- Hugging Face

MODEL_DEFAULTS: dict[str, Any] = {
    "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "encoder_feedforward_dim": 1024,
    "activation_function": "relu", "encoder_layers": 6, "decoder_layers": 10, "num_attention_heads": 8, "dropout": 0.0,
    "dim_feedforward": 2048, "pre_norm": False, "enforce_input_projection": False, "common_stride": 4, "num_queries": 100,
    "no_object_weight": 0.1, "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "train_num_points": 12544,
    "oversample_ratio": 3.0, "importance_sample_ratio": 0.75, "feature_strides": [4, 8, 16, 32],
}  # fmt: skip
BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "swin": {
        "patch_size": 4, "num_channels": 3, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
        "window_size": 7, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu", "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5, "drop_path_rate": 0.1,
    },
    "resnet": {
        "num_channels": 3, "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    "timm_backbone": {"backbone": None, "num_channels": 3, "features_only": True},
}  # fmt: skip
"""The values of settings that a config.json leaves out."""

FIXED: dict[str, Any] = {
    "activation_function": "relu", "pre_norm": False, "enforce_input_projection": False, "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}  # fmt: skip
FIXED_BACKBONE: dict[str, dict[str, Any]] = {
    "swin": {
        "patch_size": 4, "num_channels": 3, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu",
        "use_absolute_embeddings": False, "layer_norm_eps": 1e-5,
    },
    "resnet": {
        "num_channels": 3, "embedding_size": 64, "hidden_act": "relu", "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    "timm_backbone": {"num_channels": 3, "features_only": True},
}  # fmt: skip
"""Settings of which our model has only these values."""


@dataclass
class HuggingFace:
    """A Mask2Former config of Hugging Face's in our terms."""

    model: ModelConfig
    loss: LossConfig
    data: DataConfig
    class_names: list[str]
    backbone: Backbones


def config_from_huggingface(config: dict[str, Any], preprocessor: dict[str, Any]) -> HuggingFace:
    """config, preprocessor: the values of config.json and of preprocessor_config.json ({} if there
    is none).

    Raises CheckpointError that lists every setting that our model does not have.
    """
    if config.get("model_type") != "mask2former":
        raise CheckpointError(f"model_type is {config.get('model_type')!r}, expected 'mask2former'")
    values = {**MODEL_DEFAULTS, **config}
    own = _backbone_values(config)
    kind = own["model_type"]
    faults = _differences(values, FIXED) + _differences(
        own, FIXED_BACKBONE[kind], "backbone_config."
    )
    if len({values["feature_size"], values["mask_feature_size"], values["hidden_dim"]}) != 1:
        faults.append("feature_size, mask_feature_size and hidden_dim differ")
    if values["decoder_layers"] < 2:
        faults.append("decoder_layers is less than 2")
    if faults:
        raise CheckpointError(f"AlignMask does not have these settings: {'; '.join(faults)}")

    labels = {
        int(index): str(name)
        for index, name in (values.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()
    }
    if sorted(labels) != list(range(len(labels))):
        raise CheckpointError(
            f"id2label: expected the labels 0 to {len(labels) - 1}, got {sorted(labels)}"
        )
    heads = values["num_attention_heads"]
    model = ModelConfig(
        num_classes=len(labels),
        classification="softmax",
        score="class*mask",
        backbone=_with_pixels(_backbone_from_huggingface(kind, own), preprocessor),
        pixel_decoder=PixelDecoderConfig(
            values["hidden_dim"],
            values["encoder_layers"],
            heads,
            POINTS,
            values["encoder_feedforward_dim"],
        ),
        query_decoder=QueryDecoderConfig(
            values["num_queries"], values["decoder_layers"] - 1, heads, values["dim_feedforward"]
        ),
        aligned_queries=None,
    )
    loss = LossConfig(
        class_weight=values["class_weight"],
        mask_weight=values["mask_weight"],
        dice_weight=values["dice_weight"],
        no_object_weight=values["no_object_weight"],
        points=values["train_num_points"],
        oversample=values["oversample_ratio"],
        importance=values["importance_sample_ratio"],
    )
    size = preprocessor.get("size")
    data = DataConfig()
    if isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= set(size):
        data = DataConfig(eval_short_side=size["shortest_edge"], eval_max_side=size["longest_edge"])
    names = [labels[index] for index in range(len(labels))]
    return HuggingFace(model, loss, data, names, "timm" if kind == "timm_backbone" else "native")


def _backbone_values(config: dict[str, Any]) -> dict[str, Any]:
    own = config.get("backbone_config")
    if own is None and config.get("use_timm_backbone"):  # how version 4 wrote it
        own = {"model_type": "timm_backbone", "backbone": config.get("backbone")}
    if own is None and config.get("backbone"):
        raise CheckpointError(
            f"its backbone {config['backbone']!r} is named, not described: expected a "
            "backbone_config"
        )
    if own is None:
        own = {"model_type": "swin", "depths": [2, 2, 18, 2]}
    kind = own.get("model_type")
    if kind not in BACKBONE_DEFAULTS:
        raise CheckpointError(
            f"backbones of type {kind!r} are not known: only {', '.join(BACKBONE_DEFAULTS)} are"
        )
    return {**BACKBONE_DEFAULTS[kind], **own}


def _differences(values: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> list[str]:
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
    return [
        f"{prefix}{name} is {plain[name]!r}, not {value!r}"
        for name, value in expected.items()
        if plain[name] != value
    ]


def _backbone_from_huggingface(kind: str, own: dict[str, Any]) -> BackboneConfig:
    maps = own.get("out_features") or own.get("out_indices")
    if maps is not None and len(maps) != 4:
        raise CheckpointError(f"its backbone gives {len(maps)} maps, expected 4")
    if kind == "timm_backbone":
        return BackboneConfig(str(own["backbone"]), pretrained=False)
    if kind == "resnet":
        backbone = _resnet(own["layer_type"], tuple(own["depths"]))
        first = 256 if own["layer_type"] == "bottleneck" else 64
        if list(own["hidden_sizes"]) != [first * 2**s for s in range(4)]:
            raise CheckpointError(f"a ResNet with hidden_sizes {own['hidden_sizes']} is not known")
        return backbone
    if len(own["depths"]) != 4 or len(own["num_heads"]) != 4:
        raise CheckpointError("a Swin Transformer of other than 4 stages is not known")
    backbone = _swin(
        SwinConfig(
            own["embed_dim"], _four(own["depths"]), _four(own["num_heads"]), own["window_size"]
        )
    )
    return replace(backbone, drop_path_rate=own["drop_path_rate"])


def _with_pixels(backbone: BackboneConfig, preprocessor: dict[str, Any]) -> BackboneConfig:
    """Mean and standard deviation on the 0..255 scale."""
    if not preprocessor:
        return backbone
    factor = (
        preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    )
    if not preprocessor.get("do_normalize", True):
        return replace(backbone, mean=(0.0,) * 3, std=(1 / factor,) * 3)
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if mean is None or std is None:
        return backbone
    return replace(
        backbone,
        mean=tuple(round(m / factor, 6) for m in mean),
        std=tuple(round(s / factor, 6) for s in std),
    )


def config_to_huggingface(
    model: ModelConfig, loss: LossConfig, class_names: list[str]
) -> dict[str, Any]:
    """The values of a config.json. Raises CheckpointError that lists what Hugging Face's
    Mask2Former does not have."""
    faults = not_mask2former(model)
    if faults:
        raise CheckpointError(
            f"Hugging Face's Mask2Former cannot be this model: {'; '.join(faults)}"
        )
    pixel, query = model.pixel_decoder, model.query_decoder
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        **MODEL_DEFAULTS,
        "feature_size": pixel.width, "mask_feature_size": pixel.width, "hidden_dim": pixel.width,
        "encoder_feedforward_dim": pixel.ffn_width, "encoder_layers": pixel.layers,
        "num_attention_heads": pixel.heads, "decoder_layers": query.layers + 1, "dim_feedforward": query.ffn_width,
        "num_queries": query.queries, "class_weight": loss.class_weight, "mask_weight": loss.mask_weight,
        "dice_weight": loss.dice_weight, "no_object_weight": loss.no_object_weight, "train_num_points": loss.points,
        "oversample_ratio": loss.oversample, "importance_sample_ratio": loss.importance,
        "backbone_config": _backbone_to_huggingface(model.backbone),
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
    }  # fmt: skip


def not_mask2former(model: ModelConfig) -> list[str]:
    """The differences between a model's inference and that of Mask2Former, in either of the two
    codes."""
    faults = []
    if model.classification != "softmax":
        faults.append(f"classification is {model.classification}, not softmax")
    if model.pixel_decoder.points != POINTS:
        faults.append(f"pixel_decoder.points is {model.pixel_decoder.points}, not {POINTS}")
    if model.pixel_decoder.heads != model.query_decoder.heads:
        faults.append("pixel_decoder.heads and query_decoder.heads differ")
    if model.pixel_decoder.place:
        faults.append("pixel_decoder.place tells pixels their place")
    return faults


def _backbone_to_huggingface(backbone: BackboneConfig) -> dict[str, Any]:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if shape := swin_of(backbone):
        return {
            "model_type": "swin", **BACKBONE_DEFAULTS["swin"], "embed_dim": shape.embed_dim, "depths": list(shape.depths),
            "num_heads": list(shape.heads), "window_size": shape.window, "drop_path_rate": backbone.drop_path_rate,
            "out_features": stages,
        }  # fmt: skip
    if resnet := resnet_of(backbone.name):
        kind, depths = resnet
        first = 256 if kind == "bottleneck" else 64
        return {
            "model_type": "resnet", **BACKBONE_DEFAULTS["resnet"], "layer_type": kind, "depths": list(depths),
            "hidden_sizes": [first * 2**s for s in range(4)], "out_features": stages,
        }  # fmt: skip
    return {
        "model_type": "timm_backbone", "backbone": backbone.name, "features_only": True, "out_indices": [-4, -3, -2, -1],
        "use_pretrained_backbone": False,
    }  # fmt: skip


def preprocessor_to_huggingface(backbone: BackboneConfig, data: DataConfig) -> dict[str, Any]:
    """The values of a preprocessor_config.json that prepares images as our evaluation does."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": data.eval_short_side, "longest_edge": data.eval_max_side},
        "size_divisor": 32,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [m / 255 for m in backbone.mean],
        "image_std": [s / 255 for s in backbone.std],
        "do_reduce_labels": False,
        "ignore_index": 255,
    }
