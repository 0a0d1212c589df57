"""Random Mask2Formers of Hugging Face's, small and with every part at work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
    TimmBackboneConfig,
)
from transformers.utils import logging

from alignmask.data import Batch
from alignmask.model import query_decoder

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "swin": SwinConfig(
        embed_dim=24,
        depths=[1, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=STAGES,
    ),
    "resnet": ResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=STAGES,
    ),
    "timm": TimmBackboneConfig(
        backbone="resnet10t", use_pretrained_backbone=False, out_indices=(1, 2, 3, 4)
    ),
}
SWIN_T = SwinConfig(out_features=STAGES)
RESNET50 = ResNetConfig(out_features=STAGES)
SMALL = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48, "encoder_layers": 2,
    "decoder_layers": 5, "num_attention_heads": 4, "dim_feedforward": 64, "num_queries": 9, "num_labels": 5,
    "train_num_points": 64,
}  # fmt: skip

PUBLISHED = {
    "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "encoder_feedforward_dim": 1024, "encoder_layers": 6,
    "decoder_layers": 10, "num_attention_heads": 8, "dim_feedforward": 2048, "num_queries": 100, "num_labels": 80,
}  # fmt: skip


def mask2former(
    backbone: Any, seed: int = 0, **settings: Any
) -> Mask2FormerForUniversalSegmentation:
    """In eval mode; settings: small ones unless given."""
    logging.set_verbosity_error()
    torch.manual_seed(seed)
    config = Mask2FormerConfig(backbone_config=backbone, **{**SMALL, **settings})
    model = Mask2FormerForUniversalSegmentation(config)
    scatter(model, seed)
    return model.eval()


@torch.no_grad()
def scatter(model: nn.Module, seed: int = 0) -> None:
    """Random numbers for every parameter and statistic. Initial values hide faults: zero biases,
    equal norms, offsets that do not depend on the input, attention that is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: Any, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or "empty_weight" in name:
            continue
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
        elif name.endswith("sampling_offsets.bias"):
            tensor.copy_(normal(tensor.shape, 3.0))  # pixels
        elif name.endswith(
            ("embedder.weight", "features.weight", "level_embed", "level_embed.weight")
        ):
            tensor.copy_(normal(tensor.shape, 1.0))
        elif tensor.ndim > 1:
            tensor.copy_(normal(tensor.shape, 1.0) / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):  # of norms
            tensor.copy_(1 + normal(tensor.shape, 0.1))
        else:
            tensor.copy_(normal(tensor.shape, 0.1))


class SameAttention:
    """Lets our model decide as the peer did where a mask logit is so near to 0 that rounding
    decides.

    In masked attention a token is seen or not, by the sign of its mask logit. Where two
    implementations round to different sides of 0, what follows differs by more than rounding (1e-3
    of a query's output was seen), though neither is wrong. Inside, the peer's decisions are
    recorded, and ours follow them; `flipped` counts the tokens where they had to, and `furthest` is
    the largest logit among those, relative to the largest of all.
    """

    def __init__(self, peer: Mask2FormerForUniversalSegmentation, follow: bool = True) -> None:
        self.peer, self.follow = peer, follow
        self.flipped, self.furthest = 0, 0.0

    def __enter__(self) -> SameAttention:
        self.theirs: list[Tensor] = []
        predictor = self.peer.model.transformer_module.decoder.mask_predictor
        self.hook = predictor.register_forward_hook(lambda _, __, out: self.theirs.append(out[1]))
        self.original = query_decoder._attention_mask
        query_decoder._attention_mask = self._decide
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
        query_decoder._attention_mask = self.original

    def _decide(self, mask_embedding_BRE: Tensor, embedding_BES: Tensor) -> Tensor:
        logits_BRS = mask_embedding_BRE @ embedding_BES
        heads = self.peer.config.num_attention_heads
        theirs_BRS = ~self.theirs.pop(0).unflatten(0, (-1, heads))[:, 0]
        differ = (logits_BRS >= 0) != theirs_BRS
        self.flipped += int(differ.sum())
        if differ.any():
            self.furthest = max(
                self.furthest, float(logits_BRS[differ].abs().max() / logits_BRS.abs().max())
            )
        if not self.follow:
            return self.original(mask_embedding_BRE, embedding_BES)
        return (theirs_BRS | ~theirs_BRS.any(dim=2, keepdim=True))[:, None]


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 16, width // 16, generator=generator) * 255
    smooth = nn.functional.interpolate(
        coarse, size=(height, width), mode="bicubic", align_corners=False
    )
    return (
        (smooth + torch.randn(smooth.shape, generator=generator) * 10).clamp(0, 255).to(torch.uint8)
    )


def batch(image_BCHW: Tensor) -> Batch:
    """Whole images without instances."""
    count, _, height, width = image_BCHW.shape
    return Batch(
        image_BCHW=image_BCHW,
        valid_BHW=torch.ones(count, height, width, dtype=torch.bool),
        masks_GHW=torch.zeros(0, height, width, dtype=torch.bool),
        labels_G=torch.zeros(0, dtype=torch.long),
        owner_G=torch.zeros(0, dtype=torch.long),
        counts=[0] * count,
        image_ids=list(range(count)),
        file_names=[f"{i}.png" for i in range(count)],
        sizes=[(height, width)] * count,
        original_sizes=[(height, width)] * count,
    )
