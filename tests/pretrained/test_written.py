"""Our weights written for Mask2Former and for Hugging Face."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    Mask2FormerForUniversalSegmentation,
)

from alignmask import recipes
from alignmask.config import BackboneConfig, Config, DataConfig
from alignmask.config import SwinConfig as SwinShape
from alignmask.loading import from_huggingface, from_mask2former
from alignmask.model import build_model
from alignmask.pretrained.write import relative_position_index, write_huggingface, write_mask2former
from alignmask.safe_load import CheckpointError
from tests import tiny
from tests.model import peers, published
from tests.pretrained.same import assert_same


@pytest.mark.parametrize("backbone", ["swin", "resnet", "timm", "lite0", "Swin-T"])
def test_huggingface_loads_what_we_write(backbone: str, tmp_path: Path) -> None:
    """With nothing missing and nothing unexpected, and the same outputs."""
    torch.manual_seed(0)
    own = BackboneConfig(
        {
            "swin": "swin_tiny_patch4_window7_224", "resnet": "resnet18.tv_in1k", "timm": "resnet10t",
            "lite0": "tf_efficientnet_lite0", "Swin-T": "swin_tiny_patch4_window7_224",
        }[backbone],
        swin=SwinShape(24, (1, 2, 2, 2), (1, 2, 4, 8), 4) if backbone == "swin" else None,
        pretrained=False,
        mean=(120.0, 110.0, 100.0),
    )  # fmt: skip
    shape = tiny.model_config(backbone=own, classification="softmax")
    model = build_model(replace(shape, pixel_decoder=replace(shape.pixel_decoder, points=4))).eval()
    peers.scatter(model)
    config = Config(model=model.config, data=DataConfig(eval_short_side=64, eval_max_side=96))
    left_out = write_huggingface(model.state_dict(), config, list("abcd"), tmp_path / "out")
    assert {name.split(".")[0] for name in left_out} == {"aligned_queries"}
    peer, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert {
        name: list(found) for name, found in info.items() if found and "layernorm" not in str(found)
    } == {}
    assert peer.config.id2label == dict(enumerate("abcd"))

    image_BCHW = peers.images(2, 64, 96)
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "out")(
        list(image_BCHW), return_tensors="pt"
    )
    with torch.no_grad():
        ours, theirs = model(peers.batch(image_BCHW)), peer(inputs["pixel_values"])
    torch.testing.assert_close(
        ours.class_logits_LBRC[-1], theirs.class_queries_logits, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        ours.mask_logits(), theirs.masks_queries_logits, rtol=1e-4, atol=1e-4
    )
    again = from_huggingface(tmp_path / "out")
    assert again.config.model.backbone.mean == own.mean
    assert (again.config.data.eval_short_side, again.config.data.eval_max_side) == (64, 96)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        write_huggingface(model.state_dict(), config, list("abcd"), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_mask2former_files_come_back(backbone: str, suffix: str, tmp_path: Path) -> None:
    model = from_huggingface(peers.mask2former(peers.BACKBONES[backbone])).model
    path = tmp_path / f"x{suffix}"
    assert write_mask2former(model.state_dict(), Config(model=model.config), path) == []
    loaded = from_mask2former(path)
    assert_same(loaded.model, model)
    # drop_path_rate is of training, and not in the weights.
    assert (
        replace(loaded.model.config.backbone, drop_path_rate=0.1 * (backbone == "swin"))
        == model.config.backbone
    )
    state = (
        pickle.loads(path.read_bytes())["model"] if suffix == ".pkl" else torch.load(path)["model"]
    )
    assert state._metadata["sem_seg_head"] == {"version": 2}
    # `_version` of Mask2Former's MaskFormerHead and MultiScaleMaskedTransformerDecoder.
    assert state._metadata["sem_seg_head.predictor"] == {"version": 2}
    assert state["criterion.empty_weight"].tolist() == [1, 1, 1, 1, 1, pytest.approx(0.1)]


def test_written_names_are_the_published_ones(tmp_path: Path) -> None:
    """All of a full-size checkpoint, with its indices and the weights of the loss."""
    for model, backbone in (
        ("R50", "resnet50.tv_in1k"),
        ("Swin-T", "swin_tiny_patch4_window7_224"),
    ):
        config = replace(
            recipes.mask2former_r50_50ep().model,
            backbone=BackboneConfig(backbone, pretrained=False),
        )
        write_mask2former(
            build_model(config).state_dict(), Config(model=config), tmp_path / f"{model}.pth"
        )
        written = torch.load(tmp_path / f"{model}.pth")["model"]
        assert {n: tuple(t.shape) for n, t in written.items()} == published.shapes(model)


def test_relative_positions_are_those_of_swin() -> None:
    from transformers.models.swin.modeling_swin import SwinRelativePositionBias

    expected = SwinRelativePositionBias(1, (4, 4))._create_relative_position_index()
    assert torch.equal(relative_position_index(4), expected.view(16, 16))


def test_only_mask2former_can_be_written(tmp_path: Path) -> None:
    model = tiny.model()
    config = Config(model=model.config)
    with pytest.raises(
        CheckpointError, match=r"is quality_focal, not softmax; pixel_decoder\.points is 2"
    ):
        write_huggingface(model.state_dict(), config, list("abcd"), tmp_path / "x")
    with pytest.raises(
        CheckpointError, match="its backbone resnet10t is neither a ResNet nor a Swin"
    ):
        write_mask2former(model.state_dict(), config, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match=r"ends in \.pkl or \.pth"):
        write_mask2former(model.state_dict(), config, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
