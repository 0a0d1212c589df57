"""Every setting of the backbone, away from its default, and what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from alignmask.config import BackboneConfig, SwinConfig
from alignmask.model.backbone import Backbone
from tests import tiny
from tests.covers import covers

SWIN = SwinConfig(embed_dim=24, depths=(1, 2, 3, 1), heads=(2, 3, 4, 6), window=5)
SWIN_NAME = "swin_tiny_patch4_window7_224"


@covers("model.backbone.mean", "model.backbone.std")
def test_pixels_are_normalised_channel_by_channel() -> None:
    """What the body sees of known pixels; padding is 0."""
    mean, std = (10.0, 50.0, 200.0), (2.0, 4.0, 0.5)
    model = tiny.model(
        backbone=BackboneConfig("resnet10t", pretrained=False, mean=mean, std=std)
    ).eval()
    seen: list[Tensor] = []
    model.backbone.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = tiny.batch((0, 0))
    batch.image_BCHW[0, :, 5, 7] = torch.tensor([12, 40, 201])
    batch.valid_BHW[1, 20:] = False
    with torch.no_grad():
        model(batch)
    (x,) = seen
    assert x[0, :, 5, 7].tolist() == [1.0, -2.5, 2.0]
    image = batch.image_BCHW.double()
    for c in range(3):
        expected = (image[:, c] - mean[c]) / std[c] * batch.valid_BHW
        torch.testing.assert_close(x[:, c].double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", [64, 128, 256, 512]), ("resnet50", [256, 512, 1024, 2048])]
)
@covers("model.backbone.name")
def test_the_name_chooses_the_architecture(name: str, channels: list[int]) -> None:
    model = tiny.model(backbone=BackboneConfig(name, pretrained=False))
    assert model.backbone.channels == channels
    # Strides 32, 16, 8.
    assert [p[0].in_channels for p in model.pixel_decoder.project] == channels[:0:-1]
    assert model.pixel_decoder.lateral[0].in_channels == channels[0]
    expected = timm.create_model(name, features_only=True).state_dict()
    assert {n: t.shape for n, t in model.backbone.body.state_dict().items()} == {
        n: t.shape for n, t in expected.items()
    }


@covers("model.backbone.swin", "model.backbone.swin.embed_dim", "model.backbone.swin.depths")
@covers("model.backbone.swin.heads", "model.backbone.swin.window")
def test_swin_has_the_shape_that_was_asked_for() -> None:
    backbone = Backbone(BackboneConfig(SWIN_NAME, SWIN, pretrained=False))
    assert backbone.channels == [24, 48, 96, 192]
    stages = [
        module for name, module in backbone.body.named_children() if name.startswith("layers")
    ]
    assert [len(stage.blocks) for stage in stages] == [1, 2, 3, 1]
    for stage, heads in zip(stages, (2, 3, 4, 6), strict=True):
        for index, block in enumerate(stage.blocks):
            assert block.attn.num_heads == heads
            assert block.attn.relative_position_bias_table.shape == (9 * 9, heads)
            assert (block.window_size, block.shift_size) == (
                (5, 5),
                (2, 2) if index % 2 else (0, 0),
            )
    maps = backbone(torch.randint(0, 256, (1, 3, 64, 96)))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (24, 16, 24),
        (48, 8, 12),
        (96, 4, 6),
        (192, 2, 3),
    ]
    with pytest.raises(ValueError, match="is not a Swin Transformer"):
        Backbone(BackboneConfig("resnet10t", SWIN, pretrained=False))


@pytest.mark.parametrize("pretrained", [True, False])
@covers("model.backbone.pretrained")
def test_timm_is_asked_for_its_weights_or_not(
    pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = timm.create_model

    def create(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append((name, pretrained))
        return original(name, pretrained=False, **options)  # no network

    monkeypatch.setattr(timm, "create_model", create)
    tiny.model(backbone=BackboneConfig("resnet18.tv_in1k", pretrained=pretrained))
    assert asked == [("resnet18.tv_in1k", pretrained)]


@pytest.mark.parametrize("frozen", [True, False])
@covers("model.backbone.freeze_norm")
def test_norms_learn_unless_they_are_frozen(frozen: bool) -> None:
    """In the whole model, in training mode: statistics and affine parameters."""
    model = tiny.model(
        backbone=BackboneConfig("resnet10t", pretrained=False, freeze_norm=frozen)
    ).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    assert len(norms) > 5
    model(tiny.batch()).mask_logits().square().sum().backward()
    for norm, (mean, var) in zip(norms, before, strict=True):
        assert norm.training != frozen
        assert torch.equal(norm.running_mean, mean) == frozen
        assert torch.equal(norm.running_var, var) == frozen
        for parameter in (norm.weight, norm.bias):
            assert parameter.requires_grad != frozen
            assert (parameter.grad is None) == frozen
    others = [p for p in model.backbone.parameters() if p.ndim == 4]
    assert all(p.requires_grad and p.grad is not None for p in others)


@covers("model.backbone.drop_path_rate")
def test_paths_are_dropped_in_training() -> None:
    """Ever more of them, block by block, up to the rate."""
    backbone = Backbone(
        BackboneConfig(SWIN_NAME, SWIN, pretrained=False, drop_path_rate=0.6)
    ).train()
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for block in backbone.modules()
        if hasattr(block, "drop_path1")
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    image = torch.randint(0, 256, (1, 3, 64, 64)).expand(8, -1, -1, -1)
    with torch.no_grad():
        assert backbone(image)[3].std(dim=0).amax() > 1e-3  # the same image eight times
        assert backbone.eval()(image)[3].std(dim=0).amax() < 1e-5


@covers("model.backbone.drop_path_rate")
def test_no_path_is_dropped_where_none_is_asked_for() -> None:
    """timm's own Swin drops up to a tenth of them."""
    backbone = Backbone(
        BackboneConfig(SWIN_NAME, SWIN, pretrained=False, drop_path_rate=0.0)
    ).train()
    image = torch.randint(0, 256, (1, 3, 64, 64)).expand(8, -1, -1, -1)
    with torch.no_grad():
        assert backbone(image)[3].std(dim=0).amax() < 1e-5


def test_a_name_that_timm_does_not_know_gives_similar_names() -> None:
    sentence = (
        r"^backbone 'resnet5O': timm \S+ has no model of this name; similar names: .*resnet50"
    )
    with pytest.raises(ValueError, match=sentence) as found:
        Backbone(BackboneConfig("resnet5O", pretrained=False))
    assert len(str(found.value)) < 200
    with pytest.raises(ValueError, match=r"has no model of this name$"):
        Backbone(BackboneConfig("-", pretrained=False))


def test_weights_of_another_model_give_one_sentence(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    sentence = r"^backbone 'resnet18', weights .*other\.pth: .*size mismatch.*\(and \d+ more\)$"
    with pytest.raises(ValueError, match=sentence) as found:
        Backbone(BackboneConfig("resnet18", pretrained=str(tmp_path / "other.pth")))
    assert len(str(found.value)) < 600
