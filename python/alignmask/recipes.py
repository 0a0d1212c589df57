"""Recipes: functions that return a Config. Copy one, or override its settings on the command line.

Apart from the loss and the aligned queries, the paper's settings are Mask2Former's (section 3.2).
COCO is expected in datasets/coco (folders train2017, val2017 and annotations, as in its archives).
`shapes_small`, `nuclei_small` and `nuclei_tiles` leave out Eq. 2, the reduced weight of negatives:
with and without it, they were measured to be better without (docs/log.md, 2026-11-26).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alignmask.config import (
    AlignedQueryConfig,
    BackboneConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
    ShapesConfig,
    TrainConfig,
)

COCO = Path("datasets/coco")
SWIN_S = BackboneConfig("swin_small_patch4_window7_224.ms_in1k", drop_path_rate=0.3)
SWIN_B_22K = BackboneConfig("swin_base_patch4_window12_384.ms_in22k", drop_path_rate=0.3)
LITE0 = BackboneConfig(
    "tf_efficientnet_lite0",
    pretrained="lite0-package",
    freeze_norm=False,
    mean=(127.0,) * 3,
    std=(128.0,) * 3,
)


def _coco() -> DataConfig:
    return DataConfig(
        train_images=COCO / "train2017",
        train_annotations=COCO / "annotations/instances_train2017.json",
        val_images=COCO / "val2017",
        val_annotations=COCO / "annotations/instances_val2017.json",
    )


def r50_50ep() -> Config:
    """AlignMask, ResNet-50, COCO, 50 epochs (Table 1: 45.4 AP)."""
    return Config("r50_50ep", data=_coco())


def r50_12ep() -> Config:
    """AlignMask, ResNet-50, COCO, 12 epochs: the schedule of the paper's ablations (Tables 3 and 4:
    41.4 AP)."""
    return replace(r50_50ep(), name="r50_12ep", train=TrainConfig(iterations=88_500))


def swin_s_50ep() -> Config:
    """AlignMask, Swin-S, COCO, 50 epochs (Table 1: 48.6 AP)."""
    return replace(r50_50ep(), name="swin_s_50ep", model=ModelConfig(backbone=SWIN_S))


def swin_b_50ep() -> Config:
    """AlignMask, Swin-B pre-trained on ImageNet-22k, COCO, 50 epochs (Table 1: 50.5 AP)."""
    return replace(r50_50ep(), name="swin_b_50ep", model=ModelConfig(backbone=SWIN_B_22K))


def mask2former_r50_50ep() -> Config:
    """The baseline: Mask2Former, ResNet-50, COCO, 50 epochs (Table 1: 43.7 AP)."""
    model = ModelConfig(classification="softmax", aligned_queries=None, score="class*mask")
    return replace(r50_50ep(), name="mask2former_r50_50ep", model=model)


def _small_model(
    num_classes: int, width: int, queries: int, layers: int, aligned: AlignedQueryConfig
) -> ModelConfig:
    return ModelConfig(
        num_classes=num_classes,
        backbone=LITE0,
        pixel_decoder=PixelDecoderConfig(width=width, layers=2, ffn_width=4 * width),
        query_decoder=QueryDecoderConfig(queries=queries, layers=layers, ffn_width=4 * width),
        aligned_queries=aligned,
    )


def shapes_tiny() -> Config:
    """Synthetic shapes at 128 x 128, ten minutes on a laptop CPU. `alignmask demo` runs this
    recipe."""
    return Config(
        "shapes_tiny",
        model=_small_model(6, 64, 20, 3, AlignedQueryConfig(count=20, point_sets=3, points=1024)),
        data=DataConfig(
            shapes=ShapesConfig(), crop=128, scale=(0.8, 1.25), eval_short_side=128, eval_max_side=128, workers=0
        ),
        loss=LossConfig(points=512, class_weight=6.0),
        train=TrainConfig(
            iterations=3000, batch_size=8, learning_rate=2e-3, backbone_multiplier=0.5, schedule="cosine", warmup=50,
            clip=1.0, ema=0.998, evaluate_every=10_000, checkpoint_every=500, max_minutes=10,
        ),
    )  # fmt: skip


def shapes_small() -> Config:
    """Synthetic shapes at 96 x 96, a few minutes per run on one slow core: for grids of ablations
    and comparisons. Aligned queries are told where to look."""
    tiny = shapes_tiny()
    shapes = ShapesConfig(Path("data/shapes_small"), train_images=4000, val_images=500, size=96)
    assert tiny.model.aligned_queries is not None
    aligned = replace(tiny.model.aligned_queries, mask_noise=0.2)
    return replace(
        tiny,
        name="shapes_small",
        model=replace(tiny.model, aligned_queries=aligned),
        data=replace(tiny.data, shapes=shapes, crop=96, eval_short_side=96, eval_max_side=96),
        loss=replace(tiny.loss, weigh_negatives=False),
        train=replace(tiny.train, iterations=800, checkpoint_every=200, max_minutes=None),
    )


def own_small() -> Config:
    """A data set of your own, within an hour on a CPU, at 256 x 256: up to a hundred objects in an
    image that do not vanish at this size. Otherwise as nuclei_small. Not measured."""
    small = nuclei_small()
    data = replace(
        small.data, tile=None, tile_overlap=0.2, scale=(0.5, 1.5), vertical_flip=0.0, eval_max_side=512
    )  # fmt: skip
    return replace(small, name="own_small", data=data)


def nuclei_small() -> Config:
    """Nuclei, and other objects of 8 to 40 pixels, of one class, within an hour on a CPU: images of
    all sizes in tiles of 128 pixels, enlarged twice. Pixels are told their place, which halves the
    iterations that nuclei need to be told apart; aligned queries are told where to look."""
    aligned = AlignedQueryConfig(count=100, point_sets=3, points=4096, mask_noise=0.2)
    model = _small_model(1, 128, 100, 3, aligned)
    pixel_decoder = replace(model.pixel_decoder, place=True)
    return Config(
        "nuclei_small",
        # Two images are too few for BatchNorm.
        model=replace(model, backbone=replace(LITE0, freeze_norm=True), pixel_decoder=pixel_decoder),
        data=DataConfig(
            tile=128, tile_overlap=0.25, crop=256, scale=(0.45, 1.2), vertical_flip=0.5, color_jitter=0.2,
            eval_short_side=256, eval_max_side=256, workers=0,
        ),
        loss=LossConfig(points=1024, class_weight=8.0, weigh_negatives=False),
        train=TrainConfig(
            iterations=4000, batch_size=2, learning_rate=6e-4, backbone_multiplier=0.1, schedule="cosine", warmup=100,
            clip=1.0, ema=0.998, evaluate_every=2000, checkpoint_every=500, max_minutes=50,
        ),
    )  # fmt: skip


def nuclei_many() -> Config:
    """Up to 300 small objects of one class in an image, by 300 queries, from crops that keep most
    of them whole; otherwise as nuclei_small. Not measured yet."""
    small = nuclei_small()
    assert small.model.aligned_queries is not None
    return replace(
        small,
        name="nuclei_many",
        data=replace(small.data, tile=None, crop_places=8, scale=(0.7, 1.5), eval_max_side=512),
        model=replace(
            small.model,
            query_decoder=replace(small.model.query_decoder, queries=300),
            aligned_queries=replace(small.model.aligned_queries, count=300),
            detections=300,
        ),
    )


def nuclei_tiles() -> Config:
    """Nuclei in tiles of 128 x 128, a few minutes per run: for comparisons on real images
    (docs/log.md)."""
    root = Path("data/nuclei_tiles")
    whole = nuclei_small()
    return Config(
        "nuclei_tiles",
        model=_small_model(1, 64, 40, 3, AlignedQueryConfig(count=40, point_sets=3, points=1024)),
        data=replace(
            whole.data,
            train_images=root / "train/images", train_annotations=root / "train/instances.json",
            val_images=root / "val/images", val_annotations=root / "val/instances.json",
            tile=None, tile_overlap=0.2, crop=160, scale=(0.75, 1.33), eval_short_side=160, eval_max_side=160,
        ),
        loss=LossConfig(points=512, class_weight=8.0, weigh_negatives=False),
        train=replace(
            shapes_small().train, iterations=1000, learning_rate=1e-3, evaluate_every=10_000, checkpoint_every=200,
        ),
    )  # fmt: skip


def coco_subset_small() -> Config:
    """A small data set in COCO format with COCO's 80 classes, at 256 x 256, on a CPU."""
    return Config(
        "coco_subset_small",
        model=_small_model(80, 128, 50, 3, AlignedQueryConfig(count=50, point_sets=3, points=4096)),
        data=DataConfig(crop=256, scale=(0.5, 1.5), eval_short_side=256, eval_max_side=448, workers=0),
        loss=LossConfig(points=1024, class_weight=4.0),
        train=TrainConfig(
            iterations=2000, batch_size=8, learning_rate=1e-3, backbone_multiplier=0.5, schedule="cosine", warmup=100,
            clip=1.0, ema=0.998, evaluate_every=1000, checkpoint_every=500,
        ),
    )  # fmt: skip


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        r50_50ep, r50_12ep, swin_s_50ep, swin_b_50ep, mask2former_r50_50ep, shapes_tiny, shapes_small, own_small,
        nuclei_small, nuclei_many, nuclei_tiles, coco_subset_small,
    )
}  # fmt: skip
