"""The defaults are the published numbers, typed in once more: Mask2Former's R50 configuration for
COCO, and the paper's."""

from __future__ import annotations

from dataclasses import asdict

from alignmask.config import DataConfig, ModelConfig, ShapesConfig


def test_model() -> None:
    assert asdict(ModelConfig()) == {
        "num_classes": 80,
        "classification": "quality_focal",  # Eq. 3
        "backbone": {
            "name": "resnet50.tv_in1k",
            "swin": None,
            "pretrained": True,
            "freeze_norm": True,  # detectron2's FrozenBN
            "drop_path_rate": 0.0,
            "mean": (123.675, 116.280, 103.530),
            "std": (58.395, 57.120, 57.375),
        },
        # SEM_SEG_HEAD: CONVS_DIM 256, TRANSFORMER_ENC_LAYERS 6; MSDeformAttn: 8 heads, 4 points,
        # feed-forward 1024.
        "pixel_decoder": {
            "width": 256,
            "layers": 6,
            "heads": 8,
            "points": 4,
            "ffn_width": 1024,
            "place": False,  # ours
        },
        # MASK_FORMER: NUM_OBJECT_QUERIES 100, DEC_LAYERS 10 (outputs), NHEADS 8, DIM_FEEDFORWARD
        # 2048.
        "query_decoder": {"queries": 100, "layers": 9, "heads": 8, "ffn_width": 2048},
        "aligned_queries": {
            "count": 100,  # N_AQ, section 2.2
            "point_sets": 5,  # T
            "mask_noise": None,  # section 2.2: attends to what it predicts
            "points": 112 * 112,  # K
            "normalize": "mask",
            "detach_pixel_embedding": False,
            "learned_position": False,
            "visible": "objects+set",
            "share_self_attention": True,  # Table 3: sharing both is best
            "share_masked_attention": True,
        },
        "score": "class^0.5*mask",
        "detections": 100,  # TEST.DETECTIONS_PER_IMAGE
    }


def test_data() -> None:
    values = asdict(DataConfig())
    assert {name: value for name, value in values.items() if value is not None} == {
        # INPUT: IMAGE_SIZE 1024, MIN_SCALE 0.1, MAX_SCALE 2.0, RANDOM_FLIP horizontal.
        "exif": "auto",
        "crop": 1024,
        "scale": (0.1, 2.0),
        "flip": 0.5,
        "vertical_flip": 0.0,
        "color_jitter": 0.0,
        "invert": 0.0,
        "crop_places": 1,  # detectron2 crops at one random place
        # INPUT: MIN_SIZE_TEST 800, MAX_SIZE_TEST 1333.
        "eval_short_side": 800,
        "eval_max_side": 1333,
        "tile_overlap": 0.2,
        "workers": 4,
    }


def test_shapes() -> None:
    """Results in docs/log.md refer to these images."""
    values = asdict(ShapesConfig())
    assert values.pop("root").parts == ("data", "shapes")
    assert values == {
        "train_images": 2000, "val_images": 200, "size": 128, "max_instances": 6, "seed": 0, "classes": 6, "crowding": 0.0,
        "visible_share": 0.3,
    }  # fmt: skip
