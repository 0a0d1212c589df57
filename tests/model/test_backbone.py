"""Every setting of the backbone, away from its default, and what it changes."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from alignmask.config import BackboneConfig, SwinConfig
from alignmask.model import backbone as backbone_module
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

    monkeypatch.setattr(backbone_module, "_check_weights_can_be_had", lambda name: None)
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


def test_a_tag_that_timm_does_not_know_gives_similar_names() -> None:
    sentence = (
        r"^backbone 'resnet18\.a1_in2k': timm \S+ has no weights 'a1_in2k' of this model; "
        r"similar names: resnet18\.a1_in1k, "
    )
    with pytest.raises(ValueError, match=sentence) as found:
        Backbone(BackboneConfig("resnet18.a1_in2k", pretrained=False))
    assert len(str(found.value)) < 250


class TestWithoutANetwork:
    """ImageNet weights that are not there are missed at once, and not after a minute."""

    @pytest.fixture(autouse=True)
    def _nobody_answers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    @pytest.mark.parametrize("name", ["resnet18", "hf-hub:timm/resnet18.a1_in1k"])
    def test_one_sentence_at_once(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm tries again"))
        before = time.monotonic()
        with pytest.raises(OSError, match="cannot be downloaded") as found:
            Backbone(BackboneConfig(name, pretrained=True))
        assert time.monotonic() - before < 5
        text = str(found.value)
        assert text.startswith(
            f"backbone {name}: its ImageNet weights (timm/resnet18.a1_in1k/model.safetensors) are "
            f"not in {tmp_path} and cannot be downloaded ("
        )
        assert text.endswith(
            "name a file with --model.backbone.pretrained FILE, or start from other weights with "
            "--train.init-from"
        )

    def test_weights_in_the_cache_are_taken(self, tmp_path: Path) -> None:
        torch.manual_seed(3)
        expected = timm.create_model("resnet10t").state_dict()
        folder = tmp_path / "models--timm--resnet10t.c3_in1k"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        save_file(expected, folder / "snapshots" / "abc" / "model.safetensors")
        found = Backbone(BackboneConfig("resnet10t", pretrained=True)).body.state_dict()
        assert torch.equal(found["layer1.0.conv1.weight"], expected["layer1.0.conv1.weight"])

    def test_a_hub_that_answers_is_left_to_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def answer(*_: Any, **__: Any) -> None:
            response = SimpleNamespace(headers={}, request=None)
            raise huggingface_hub.errors.HfHubHTTPError("404", response=response)

        seen = []
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
        create = timm.create_model

        def without(name: str, pretrained: bool, **options: Any) -> Any:
            seen.append(pretrained)
            return create(name, pretrained=False, **options)

        monkeypatch.setattr(timm, "create_model", without)
        Backbone(BackboneConfig("resnet10t", pretrained=True))
        assert seen == [True]


def test_weights_of_another_model_give_one_sentence(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    sentence = r"^backbone 'resnet18', weights .*other\.pth: .*size mismatch.*\(and \d+ more\)$"
    with pytest.raises(ValueError, match=sentence) as found:
        Backbone(BackboneConfig("resnet18", pretrained=str(tmp_path / "other.pth")))
    assert len(str(found.value)) < 600


def test_frozen_stages_keep_their_statistics_at_once() -> None:
    """Also if nothing calls `train` afterwards."""
    made = Backbone(BackboneConfig("resnet10t", pretrained=False, freeze_norm=False)).train()
    made.freeze(2)
    assert made.frozen
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made(255 * torch.rand(2, 3, 64, 64))
    changed = {n for n, tensor in made.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed
    assert not any("conv1" in name or "layer1" in name for name in changed), changed


class TestWithoutPretrainedWeights:
    """Nothing is fetched: the name may be that of a stranger's checkpoint."""

    @pytest.fixture(autouse=True)
    def _no_connections(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

        def refuse(*_: Any, **__: Any) -> NoReturn:
            pytest.fail("it connects to a network")

        for name in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def test_a_model_of_the_hub_is_not_looked_up(self) -> None:
        with pytest.raises(
            OSError, match=r"description \(owner/net/config.json\).*nothing is fetched"
        ):
            Backbone(BackboneConfig("hf-hub:owner/net", pretrained=False))

    def test_one_whose_description_is_in_the_cache_is_built(self, tmp_path: Path) -> None:
        folder = tmp_path / "models--owner--net"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        description = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": {}}
        (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(description))
        body = Backbone(BackboneConfig("hf-hub:owner/net", pretrained=False)).body
        expected = Backbone(BackboneConfig("resnet10t", pretrained=False)).body
        assert [*body.state_dict()] == [*expected.state_dict()]
