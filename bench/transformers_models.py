"""Hugging Face models before and after `alignmask.integrations.transformers.use_kernels`: whole
forward passes, in turns.

`python bench/transformers_models.py` (random weights; nothing is downloaded). "kernel" is the
accelerated model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import transformers
from harness import Result, Row, environment, line, quartiles, write
from torch import nn

from alignmask.integrations.transformers import restore, use_kernels

SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def mask2former() -> nn.Module:
    """Swin-T, 100 queries, 80 classes: the published instance segmentation model."""
    backbone = transformers.SwinConfig(**SWIN_T, out_features=STAGES)
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=80, num_queries=100)
    )


def oneformer() -> nn.Module:
    backbone = transformers.SwinConfig(**SWIN_T, out_features=STAGES)
    config = transformers.OneFormerConfig(
        backbone_config=backbone, num_labels=80, is_training=False
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def deformable_detr() -> nn.Module:
    backbone = transformers.ResNetConfig(out_features=STAGES[1:])
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False
    )
    return transformers.DeformableDetrForObjectDetection(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mask2former": mask2former, "oneformer": oneformer, "deformable_detr": deformable_detr,
}  # fmt: skip


def measure(name: str, model: nn.Module, size: int, threads: int, turns: int, train: bool) -> Row:
    torch.set_num_threads(threads)
    batch = {"pixel_values": torch.randn(1, 3, size, size)}
    if name == "oneformer":
        batch["task_inputs"] = torch.randint(0, 100, (1, 77))

    def run() -> float:
        began = time.perf_counter()
        with torch.set_grad_enabled(train):
            outputs = model(**batch)
        if train:
            sum(
                v.square().mean()
                for v in outputs.values()
                if torch.is_tensor(v) and v.requires_grad
            ).backward()
        return time.perf_counter() - began

    times: dict[str, list[float]] = {"kernel": [], "transformers": []}
    for turn in range(turns + 1):  # the first one warms up
        for candidate, seconds in times.items():
            (use_kernels if candidate == "kernel" else restore)(model)
            taken = run()
            if turn:
                seconds.append(taken)
    results = [
        Result(candidate, turns, *quartiles(seconds)) for candidate, seconds in times.items()
    ]
    labels = {
        "model": name,
        "image": f"{size}x{size}",
        "pass": "forward+backward" if train else "forward",
    }
    return Row("accelerate", labels, threads, {"B": 1, "H": size, "W": size}, {}, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--dry", action="store_true", help="no results file")
    options = parser.parse_args()
    about, rows = environment(), []
    print(f"{about['cpu']}, torch {about['torch']}, transformers {transformers.__version__}")
    for name in options.models:
        torch.manual_seed(0)
        model = MODELS[name]().train(options.train)
        for size in options.sizes:
            rows.append(measure(name, model, size, options.threads, options.turns, options.train))
            print(line(rows[-1]), flush=True)
    if not options.dry:
        print(f"written to {write(about | {'transformers': transformers.__version__}, rows)}")


if __name__ == "__main__":
    main()
