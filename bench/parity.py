"""How far our baseline's outputs are from Hugging Face's Mask2Former with the same weights: `python
bench/parity.py`.

For each model, image size and seed: the largest difference over the largest value, of class and
mask logits, over all outputs of the decoder, in fp32; the number of tokens that one of the two
attends to and the other does not, because the signs of their mask logits differ (and how far from 0
those are, over the largest logit); and the differences once ours attends to theirs. Random weights
(`tests.model.peers.scatter`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alignmask.loading import from_huggingface
from alignmask.model import Prediction
from tests.model import peers

MODELS = {
    **{f"small {name}": (backbone, {}) for name, backbone in peers.BACKBONES.items()},
    "Swin-T": (peers.SWIN_T, peers.PUBLISHED),
    "R50": (peers.RESNET50, peers.PUBLISHED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[128, 160, 384, 384],
        help="height and width, repeated",
    )
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    sizes = list(zip(options.sizes[::2], options.sizes[1::2], strict=True))
    print(
        "model, image, seed: errors of class and mask logits; tokens seen by one alone; errors if "
        "both see the same"
    )
    for name in options.models:
        backbone, settings = MODELS[name]
        for seed in range(options.seeds):
            peer = peers.mask2former(backbone, seed, **settings)
            model = from_huggingface(peer).model
            for size in sizes:
                image_BCHW = peers.images(1, *size, seed=seed)
                normalised = (image_BCHW - model.backbone.mean) / model.backbone.std
                with torch.inference_mode(), peers.SameAttention(peer, follow=False) as attention:
                    theirs = peer(pixel_values=normalised, output_auxiliary_logits=True)
                    own = errors(model(peers.batch(image_BCHW)), theirs)
                with torch.inference_mode(), peers.SameAttention(peer) as same:
                    theirs = peer(pixel_values=normalised, output_auxiliary_logits=True)
                    followed = errors(model(peers.batch(image_BCHW)), theirs)
                print(
                    f"{name}, {size[0]}x{size[1]}, {seed}: {own}; {attention.flipped} tokens "
                    f"({attention.furthest:.0e}); "
                    f"{followed} (after {same.flipped})",
                    flush=True,
                )


def errors(ours: Prediction, theirs: Any) -> str:
    """Of class logits, and of mask logits."""
    expected = [*theirs.auxiliary_logits, theirs]
    classes = [
        error(ours.class_logits_LBRC[i], e["class_queries_logits"]) for i, e in enumerate(expected)
    ]
    masks = [error(ours.mask_logits(i), e["masks_queries_logits"]) for i, e in enumerate(expected)]
    return f"{max(classes):.1e} {max(masks):.1e}"


def error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


if __name__ == "__main__":
    main()
