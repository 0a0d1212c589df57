"""Other projects' checkpoints in and out: names, shapes, configs, reports, errors."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)

from alignmask import checkpoint, recipes
from alignmask.config import AlignedQueryConfig, BackboneConfig, Config, DataConfig, LossConfig
from alignmask.loading import from_huggingface, from_mask2former
from alignmask.model import AlignMask, build_model
from alignmask.pretrained import configs, names
from alignmask.pretrained.read import initialise, kind_of
from alignmask.pretrained.write import write_mask2former
from alignmask.safe_load import CheckpointError
from tests import tiny
from tests.model import peers, published
from tests.pretrained.same import assert_same

NAMES = Path(__file__).parent / "published_names"


# ---- Mask2Former's published checkpoints


@pytest.mark.parametrize("model", ["R50", "Swin-T"])
def test_the_table_of_published_names(model: str) -> None:
    """The fixture, written out in full."""
    lines = [
        f"{name} {'x'.join(map(str, shape))}" for name, shape in published.shapes(model).items()
    ]
    assert (NAMES / f"{model}.txt").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("model", "millions"),
    [("R50", 44), ("R101", 63), ("Swin-T", 47), ("Swin-S", 69), ("Swin-B", 107), ("Swin-L", 216)],
)
def test_published_names_and_shapes_are_the_baselines(model: str, millions: int) -> None:
    """On the meta device: every name of the checkpoint has one of ours, every one of ours is there,
    all shapes agree."""
    table = {
        name: torch.empty(shape, device="meta") for name, shape in published.shapes(model).items()
    }
    tensors, unknown = names.to_ours(table, "mask2former")
    assert unknown == []
    config = configs.config_from_tensors(tensors)
    assert config.backbone.name.split(".")[0] == published.TIMM[model]
    assert config.query_decoder.queries == published.MODELS[model][1]
    with torch.device("meta"):
        own = build_model(config)
    expected = {
        n: t.shape for n, t in own.state_dict().items() if not n.endswith("num_batches_tracked")
    }
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    # The paper's Table 1, and Mask2Former's.
    assert round(sum(p.numel() for p in own.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("model", "suffix"), [("R50", ".pkl"), ("Swin-T", ".pth")])
def test_a_synthetic_checkpoint_loads_with_nothing_missing_and_nothing_left_over(
    model: str, suffix: str, tmp_path: Path
) -> None:
    path, tensors = tmp_path / f"model_final{suffix}", published.checkpoint(model)
    if suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save(
            {
                "model": tensors,
                "iteration": 368749,
                "optimizer": {},
                "scheduler": {"last_epoch": 1},
            },
            path,
        )
    loaded = from_mask2former(path)
    assert loaded.report.not_loaded == loaded.report.unused == []
    assert loaded.model.config.classification == "softmax"
    assert loaded.model.config.aligned_queries is None
    assert not loaded.model.training
    assert loaded.config.model.backbone.pretrained is False
    for name, tensor in loaded.model.state_dict().items():
        if tensor.is_floating_point():  # nothing has kept its initial value
            assert 0.1 <= tensor.min() <= tensor.max() <= 0.2, name
    key = (
        "sem_seg_head.predictor.transformer_cross_attention_layers.3.multihead_attn.in_proj_weight"
    )
    layer = loaded.model.query_decoder.layers[3].masked_attention
    thirds = (layer.query.weight, layer.key.weight, layer.value.weight)
    assert torch.equal(torch.cat(thirds), tensors[key])


def rewritten(source: dict[str, Tensor], pattern: str, replacement: str) -> dict[str, Tensor]:
    return {name.replace(pattern, replacement): tensor for name, tensor in source.items()}


def small_mask2former(tmp_path: Path, **settings: Any) -> tuple[Path, AlignMask]:
    """A checkpoint in Mask2Former's names of a random small model, and the model."""
    model = from_huggingface(peers.mask2former(peers.BACKBONES["swin"], **settings)).model
    write_mask2former(model.state_dict(), Config(model=model.config), tmp_path / "small.pth")
    return tmp_path / "small.pth", model


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("sem_seg_head.pixel_decoder.", "sem_seg_head."),
        ("predictor.query_feat", "predictor.static_query"),
        ("backbone", "module.backbone"),
    ],
)
def test_older_names_are_known(pattern: str, replacement: str, tmp_path: Path) -> None:
    path, model = small_mask2former(tmp_path)
    torch.save({"model": rewritten(torch.load(path)["model"], pattern, replacement)}, path)
    assert_same(from_mask2former(path).model, model)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    path, _ = small_mask2former(tmp_path)
    tensors = torch.load(path)["model"]
    del tensors["sem_seg_head.predictor.transformer_ffn_layers.1.linear1.weight"]
    del tensors["backbone.norm2.bias"]
    tensors["sem_seg_head.pixel_decoder.mask_features.weight"] = torch.zeros(32, 31, 1, 1)
    tensors["sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias"] = (
        torch.zeros(93)
    )
    tensors["sem_seg_head.predictor.box_embed.weight"] = torch.zeros(4)
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError) as refused:
        from_mask2former(path)
    head, *lines = str(refused.value).splitlines()
    assert head == f"{path} does not fit the model:"
    assert lines[0] == "  missing: backbone.norms.2.bias, query_decoder.layers.1.ffn.0.weight"
    assert "query_decoder.layers.0.self_attention.key.bias (31,), expected (32,)" in lines[1]
    assert "pixel_decoder.embed.weight (32, 31, 1, 1), expected (32, 32, 1, 1)" in lines[1]
    assert lines[2] == "  unknown: sem_seg_head.predictor.box_embed.weight"


def test_other_models_are_no_mask2former(tmp_path: Path) -> None:
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(
        CheckpointError,
        match=r"x\.pth: not a Mask2Former checkpoint: it has nothing for our query_decoder",
    ):
        from_mask2former(tmp_path / "x.pth")
    path, _ = small_mask2former(tmp_path)
    torch.save(
        {"model": rewritten(torch.load(path)["model"], "backbone.", "backbone.convnext.")}, path
    )
    with pytest.raises(CheckpointError, match="its backbone is neither a ResNet nor a Swin"):
        from_mask2former(path)


def test_a_swin_without_one_of_its_tables_is_refused(tmp_path: Path) -> None:
    path, _ = small_mask2former(tmp_path)
    tensors = torch.load(path)["model"]
    (name,) = (
        n for n in tensors if n.endswith("layers.2.blocks.0.attn.relative_position_bias_table")
    )
    del tensors[name]
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError, match="its backbone is neither a ResNet nor a Swin"):
        from_mask2former(path)


# ---- into AlignMask


def test_loading_into_alignmask_leaves_the_class_head_and_says_so(tmp_path: Path) -> None:
    path, baseline = small_mask2former(tmp_path)
    config = replace(
        baseline.config,
        classification="quality_focal",
        aligned_queries=AlignedQueryConfig(learned_position=True, share_self_attention=False),
    )
    torch.manual_seed(0)
    loaded = from_mask2former(path, config)
    own = loaded.model.state_dict()
    head = ["query_decoder.heads.classify.bias", "query_decoder.heads.classify.weight"]
    assert set(head) <= set(loaded.report.not_loaded)
    beyond = [n for n in own if "aligned" in n]
    assert len(beyond) > 10
    assert sorted([*head, *beyond]) == loaded.report.not_loaded
    assert sorted(loaded.report.unused) == head
    assert own[head[1]].shape == (5, 32)
    torch.testing.assert_close(own[head[0]].sigmoid(), torch.full((5,), 0.01))  # as in a new model
    for name, tensor in baseline.state_dict().items():
        if name not in head:
            assert torch.equal(own[name], tensor), name
    assert "not loaded, keep their initial values: aligned_queries." in str(loaded.report)


def test_other_classes_leave_the_class_head_too(tmp_path: Path) -> None:
    path, baseline = small_mask2former(tmp_path)
    loaded = from_mask2former(path, replace(baseline.config, num_classes=3))
    assert loaded.report.not_loaded == [
        "query_decoder.heads.classify.bias",
        "query_decoder.heads.classify.weight",
    ]
    with pytest.raises(
        CheckpointError, match=r"query_decoder\.query \(9, 32\), expected \(8, 32\)"
    ):
        from_mask2former(
            path,
            replace(
                baseline.config, query_decoder=replace(baseline.config.query_decoder, queries=8)
            ),
        )


def test_initialise_takes_runs_files_and_folders(tmp_path: Path) -> None:
    peer = peers.mask2former(peers.BACKBONES["swin"])
    expected = from_huggingface(peer).model
    path, _ = small_mask2former(tmp_path)
    peer.save_pretrained(tmp_path / "face")
    meta = {"class_names": list("abcde"), "category_ids": [1, 2, 3, 4, 5]}
    checkpoint.save(
        tmp_path / "run" / "best", Config(model=expected.config), expected.state_dict(), meta
    )
    kinds = {path: "mask2former", tmp_path / "face": "huggingface", tmp_path / "run": "alignmask"}
    for source, kind in kinds.items():
        assert kind_of(source) == kind
        model = build_model(expected.config)
        assert str(initialise(model, source)) == "everything was loaded and used"
        assert_same(model, expected)
    for nothing in (tmp_path / "nowhere", tmp_path / "nowhere.pkl", tmp_path):
        with pytest.raises(FileNotFoundError):
            kind_of(nothing)


def test_sigmoid_heads_go_from_alignmask_to_alignmask(tmp_path: Path) -> None:
    model = tiny.model()
    meta = {"class_names": list("abcd"), "category_ids": [1, 2, 3, 4]}
    checkpoint.save(tmp_path / "run", Config(model=model.config), model.state_dict(), meta)
    other = tiny.model(seed=1, classification="focal", aligned_queries=None)
    report = initialise(other, tmp_path / "run")
    assert report.not_loaded == []
    assert {name.split(".")[0] for name in report.unused} == {"aligned_queries"}
    assert torch.equal(
        other.query_decoder.heads.classify.weight, model.query_decoder.heads.classify.weight
    )


# ---- Hugging Face's folders


@pytest.mark.parametrize("backbone", peers.BACKBONES)
@pytest.mark.parametrize("safe", [True, False])
def test_huggingface_folders_and_models_give_the_same(
    backbone: str, safe: bool, tmp_path: Path
) -> None:
    peer = peers.mask2former(peers.BACKBONES[backbone])
    peer.save_pretrained(tmp_path)
    if not safe:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    loaded, live = from_huggingface(tmp_path), from_huggingface(peer)
    assert str(loaded.report) == str(live.report) == "everything was loaded and used"
    assert loaded.config.model == live.config.model
    assert loaded.class_names == [f"LABEL_{i}" for i in range(5)]
    assert loaded.config.loss == LossConfig(points=64)
    assert_same(loaded.model, live.model)


def test_sharded_folders_load(tmp_path: Path) -> None:
    peer = peers.mask2former(peers.BACKBONES["swin"])
    peer.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(from_huggingface(tmp_path).model, from_huggingface(peer).model)


def test_the_hubs_older_files_have_indices_that_are_left_out(tmp_path: Path) -> None:
    peer = peers.mask2former(peers.BACKBONES["swin"])
    peer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        tensors[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.int64)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same(from_huggingface(tmp_path).model, from_huggingface(peer).model)


def test_the_preprocessor_tells_pixels_and_sizes() -> None:
    values = {"model_type": "mask2former", "backbone_config": {"model_type": "swin"}}
    preprocessor = {
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 480, "longest_edge": 640},
    }  # fmt: skip
    found = configs.config_from_huggingface(values, preprocessor)
    assert found.model.backbone.mean == (127.5, 102.0, 76.5)
    assert found.model.backbone.std == (51.0, 51.0, 25.5)
    assert (found.data.eval_short_side, found.data.eval_max_side) == (480, 640)
    square = configs.config_from_huggingface(
        values, {"size": {"height": 384, "width": 384}, "do_normalize": False}
    )
    assert square.data == DataConfig()
    assert (square.model.backbone.mean, square.model.backbone.std) == ((0.0,) * 3, (255.0,) * 3)
    default = configs.config_from_huggingface(values, {}).model
    assert default == replace(
        recipes.mask2former_r50_50ep().model, num_classes=2, backbone=default.backbone
    )
    assert (default.backbone.mean, default.backbone.std) == (
        BackboneConfig().mean,
        BackboneConfig().std,
    )


def test_defaults_are_those_of_transformers() -> None:
    """config.json leaves defaults out."""
    theirs = Mask2FormerConfig().to_dict()
    for name, value in configs.MODEL_DEFAULTS.items():
        assert json.loads(json.dumps(theirs[name])) == value, name
    assert theirs["backbone_config"]["model_type"] == "swin"
    assert list(theirs["backbone_config"]["depths"]) == [2, 2, 18, 2]
    for kind, peer in (
        ("swin", SwinConfig()),
        ("resnet", ResNetConfig()),
        ("timm_backbone", TimmBackboneConfig()),
    ):
        values = json.loads(json.dumps(peer.to_dict()))
        for name, value in configs.BACKBONE_DEFAULTS[kind].items():
            assert values[name] == value, (kind, name)


def test_what_our_model_cannot_be_is_listed() -> None:
    own: dict[str, Any] = {
        "model_type": "mask2former",
        "pre_norm": True,
        "hidden_dim": 128,
        "activation_function": "gelu",
    }
    own["backbone_config"] = {
        "model_type": "swin",
        "mlp_ratio": 2.0,
        "use_absolute_embeddings": True,
    }
    with pytest.raises(CheckpointError) as refused:
        configs.config_from_huggingface(own, {})
    for words in (
        "pre_norm is True, not False", "activation_function is 'gelu', not 'relu'", "backbone_config.mlp_ratio is 2.0",
        "backbone_config.use_absolute_embeddings is True", "feature_size, mask_feature_size and hidden_dim differ",
    ):  # fmt: skip
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "maskformer"}, "model_type is 'maskformer', expected 'mask2former'"),
        (
            {"backbone_config": {"model_type": "focalnet"}},
            "backbones of type 'focalnet' are not known",
        ),
        (
            {"backbone_config": {"model_type": "resnet", "depths": [3, 4, 7, 3]}},
            r"ResNet of \(3, 4, 7, 3\) bottleneck",
        ),
        (
            {"backbone_config": {"model_type": "resnet", "hidden_sizes": [1, 2, 3, 4]}},
            "hidden_sizes",
        ),
        (
            {"backbone_config": {"model_type": "swin", "out_features": ["stage4"]}},
            "gives 1 maps, expected 4",
        ),
        ({"backbone_config": {"model_type": "swin", "depths": [2, 2]}}, "of other than 4 stages"),
        ({"backbone": "microsoft/resnet-50", "backbone_config": None}, "is named, not described"),
        ({"id2label": {"0": "a", "2": "b"}}, "expected the labels 0 to 1"),
        ({"decoder_layers": 1}, "decoder_layers is less than 2"),
    ],
)
def test_unknown_settings_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        configs.config_from_huggingface({"model_type": "mask2former", **values}, {})


def test_backbones_of_version_4() -> None:
    values = {
        "model_type": "mask2former",
        "backbone": "resnet50",
        "use_timm_backbone": True,
        "backbone_config": None,
    }
    found = configs.config_from_huggingface(values, {})
    assert (found.model.backbone.name, found.backbone) == ("resnet50", "timm")
