"""The whole model beside Hugging Face's Mask2Former with the same weights: inference and a training
step, in turns.

`compiled`: inference of both under torch.compile.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import DEVICE, GPU, SIDE, B, Results, batch, rounds, say, skip

try:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
    from transformers.utils import logging

    from alignmask.config import LossConfig
    from alignmask.loading import from_huggingface
    from alignmask.loss import Criterion
except ImportError as error:
    skip(f"the whole models are left out: {error}")

CLASSES = 80 if GPU else 5
INSTANCES = 7
Context = Callable[[], Any]


def autocast() -> Any:
    return torch.autocast(DEVICE, torch.bfloat16)


PRECISIONS: dict[str, tuple[bool, Context]] = {
    "bf16": (True, autocast), "tf32": (True, contextlib.nullcontext), "fp32": (False, contextlib.nullcontext),
}  # fmt: skip
"""TF32 in matrix products, autocast."""


def published() -> Any:
    """Hugging Face's model: ResNet-50, as published; without a GPU, a tiny one."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    if not GPU:
        from tests.model import peers

        return peers.mask2former(
            peers.BACKBONES["resnet"], num_labels=CLASSES, use_auxiliary_loss=True
        )
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, num_labels=CLASSES, use_auxiliary_loss=True)
    )


class Sides:
    def __init__(self) -> None:
        theirs = published()
        self.ours = from_huggingface(theirs).model.to(DEVICE)
        self.theirs = theirs.to(DEVICE)
        self.one, self.several = batch(1, 0, CLASSES), batch(B, INSTANCES, CLASSES)
        self.loss = LossConfig() if GPU else LossConfig(points=64)
        self.criterion = Criterion(self.ours.config, self.loss)

    def pixels(self, of: Any) -> torch.Tensor:
        return (of.image_BCHW - self.ours.backbone.mean) / self.ours.backbone.std

    def inference(self, context: Context, ours: Any, theirs: Any) -> dict[str, Callable[[], Any]]:
        pixels = self.pixels(self.one)

        def run_theirs() -> Any:
            with torch.inference_mode(), context():
                return theirs(pixel_values=pixels).class_queries_logits

        def run_ours() -> Any:
            with torch.inference_mode(), context():
                return ours(self.one).class_logits_LBRC[-1]

        return {"Hugging Face": run_theirs, "AlignMask": run_ours}

    def training(self, context: Context) -> dict[str, Callable[[], Any]]:
        of, pixels = self.several, self.pixels(self.several)
        labels = [of.labels_G[of.owner_G == i] for i in range(B)]
        masks = [of.masks_GHW[of.owner_G == i].float() for i in range(B)]

        def run_theirs() -> None:
            self.theirs.zero_grad(set_to_none=True)
            with context():
                loss = self.theirs(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss
            loss.backward()

        def run_ours() -> None:
            self.ours.zero_grad(set_to_none=True)
            with context():
                prediction = self.ours(of)
            self.criterion(prediction, of).total(self.loss).backward()

        return {"Hugging Face": run_theirs, "AlignMask": run_ours}


def eager(sides: Sides) -> None:
    results = Results("hf")
    sides.ours.eval(), sides.theirs.eval()
    found = [
        run() for run in sides.inference(contextlib.nullcontext, sides.ours, sides.theirs).values()
    ]
    results["largest difference of class logits"] = float(
        (found[0] - found[1]).abs().max() / found[0].abs().max()
    )
    for name, (tf32, context) in PRECISIONS.items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        label = f"inference 1 x {SIDE}^2 {name}"
        results.attempt(
            label, lambda c=context: rounds(sides.inference(c, sides.ours, sides.theirs), 10)
        )
    sides.ours.train(), sides.theirs.train()
    for name in ("bf16", "tf32"):
        torch.backends.cuda.matmul.allow_tf32, context = PRECISIONS[name]
        results.attempt(
            f"training step {B} x {SIDE}^2 {name}", lambda c=context: rounds(sides.training(c), 5)
        )


def compiled(sides: Sides) -> None:
    results = Results("compiled")
    sides.ours.eval(), sides.theirs.eval()
    torch.backends.cuda.matmul.allow_tf32 = True
    label = f"inference 1 x {SIDE}^2 bf16, torch.compile"
    if not GPU:  # on a CPU, Inductor's compiler takes longer than all the rest
        skip("torch.compile of whole models is left out without a GPU")
    # One may fail, and compiling may take all the time that there is.
    for name in ("Hugging Face", "AlignMask"):
        ours = torch.compile(sides.ours, dynamic=False) if name == "AlignMask" else sides.ours
        theirs = (
            torch.compile(sides.theirs, dynamic=False) if name == "Hugging Face" else sides.theirs
        )
        call = sides.inference(autocast, ours, theirs)[name]
        results.attempt(f"{label}: {name}", lambda n=name, c=call: rounds({n: c}, 10))


if __name__ == "__main__":
    both = Sides()
    say("models are there")
    (compiled if "compiled" in sys.argv else eager)(both)
