"""Small Hugging Face models with random weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZE = (96, 128)
SWIN: dict[str, Any] = {
    "image_size": 96, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
RESNET: dict[str, Any] = {
    "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
DETR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 12, "num_labels": 5,
}  # fmt: skip


def mask2former() -> nn.Module:
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=32, encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=32,
        num_queries=7, num_labels=5,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def oneformer() -> nn.Module:
    config = transformers.OneFormerConfig(
        backbone_config=transformers.SwinConfig(**SWIN), conv_dim=32, mask_dim=32, hidden_dim=32,
        encoder_feedforward_dim=32, encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=32,
        num_queries=7, num_labels=5, is_training=False, query_dec_layers=1,
    )  # fmt: skip
    return transformers.OneFormerForUniversalSegmentation(config)


def deformable_detr() -> nn.Module:
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**RESNET), backbone=None, use_timm_backbone=False,
        use_pretrained_backbone=False, two_stage=True, with_box_refine=True, two_stage_num_proposals=12, **DETR,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr() -> nn.Module:
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(**RESNET), encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32, feat_strides=[8, 16, 32], decoder_in_channels=[32, 32, 32], num_denoising=0,
        anchor_image_size=None, **DETR,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def rt_detr_v2() -> nn.Module:
    config = transformers.RTDetrV2Config(
        backbone_config=transformers.RTDetrResNetConfig(**RESNET), encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32, feat_strides=[8, 16, 32], decoder_in_channels=[32, 32, 32], num_denoising=0,
        anchor_image_size=None, **DETR,
    )  # fmt: skip
    return transformers.RTDetrV2ForObjectDetection(config)


MODELS = {
    "mask2former": mask2former, "oneformer": oneformer, "deformable_detr": deformable_detr, "rt_detr": rt_detr,
}  # fmt: skip


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """Two images, the second one with padding where the model takes a mask of it."""
    generator = torch.Generator().manual_seed(0)
    pixel_mask = torch.ones(2, *SIZE, dtype=torch.long)
    pixel_mask[1, 70:] = 0
    pixel_mask[1, :, 90:] = 0
    found = {"pixel_values": torch.randn(2, 3, *SIZE, generator=generator)}
    if "RTDetr" not in type(model).__name__:
        found["pixel_mask"] = pixel_mask
    if "OneFormer" in type(model).__name__:
        found["task_inputs"] = torch.randint(0, 100, (2, 77), generator=generator)
    return found
