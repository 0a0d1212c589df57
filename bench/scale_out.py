"""What data parallel training on many GPUs should cost: the figures of docs/scaling.md.

    python bench/scale_out.py
    python bench/scale_out.py --recipe swin_b_50ep --seconds 0.3
    python bench/scale_out.py --annotations FILE --images FOLDER

The first two predict; nothing is run. Bytes are counted on the recipe's model. Seconds of compute
and bandwidths are arguments, and the other assumptions are the constants below. The third measures
what parsing an annotation file and loading a training image take, in seconds of one CPU core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from alignmask import recipes
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.model import build_model

GPUS = (8, 64, 512, 4096)
IN_A_NODE = 8
NVLINK = 300e9
"""Bytes a second that a GPU sends to the others of its node."""
LINKS = {
    "400 Gb/s for each GPU": IN_A_NODE * 50e9,
    "100 Gb/s for each node": 12.5e9,
    "10 Gb/s for each node": 1.25e9,
}
"""Bytes a second that a node sends to others, by what the link is sold as."""
REACHED = 0.7
"""Share of a link's bandwidth that an all-reduce reaches."""
LATENCY = 10e-6
"""Seconds of a message between nodes."""
BUCKET = 25 * 2**20
"""Bytes that DDP reduces at a time. The last bucket is full when the backward pass is over, so
nothing hides it."""
BACKWARD = 0.6
"""Share of the step's compute that is its backward pass, behind which the other buckets hide."""
SECONDS = 0.177
"""AlignMask, R50, bf16, 4 images of 1024 x 1024, one H200: docs/log.md, 2026-11-26."""


def trainable(config: Config) -> int:
    """Parameters with a gradient."""
    config = without_pretrained(config)
    with torch.device("meta"):
        model = build_model(config.model)
    model.backbone.freeze(config.train.freeze_backbone)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def all_reduce(size: float, gpus: int, node: float) -> float:
    """Seconds: a ring within each node, and one between nodes, for which each GPU of a node has an
    equal share of what was summed up within it. node: bytes a second."""
    inside, nodes = min(gpus, IN_A_NODE), max(1, gpus // IN_A_NODE)
    seconds = 2 * (inside - 1) / inside * size / (REACHED * NVLINK)
    seconds += 2 * (nodes - 1) / nodes * size / (REACHED * node)
    return seconds + 2 * math.log2(gpus) * LATENCY


def efficiency(size: float, compute: float, gpus: int, node: float, overlap: bool) -> float:
    """Share of the time in which GPUs compute. size: bytes of all gradients."""
    buckets = math.ceil(size / BUCKET)
    exposed = buckets * all_reduce(size / buckets, gpus, node)
    if overlap:
        last = exposed / buckets
        exposed = last + max(0.0, exposed - last - BACKWARD * compute)
    # The normalisers, before the backward pass, and the map of unused parameters after it.
    exposed += 2 * all_reduce(0, gpus, node)
    return compute / (compute + exposed)


def table(size: float, compute: float) -> Iterator[str]:
    yield "| link between nodes | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |"
    yield "|---" * (1 + len(GPUS)) + "|"
    for name, node in LINKS.items():
        cells = [
            f"{efficiency(size, compute, gpus, node, False):.0%} → "
            f"{efficiency(size, compute, gpus, node, True):.0%}"
            for gpus in GPUS
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def report(recipe: str, compute: float) -> Iterator[str]:
    config = recipes.RECIPES[recipe]()
    count = trainable(config)
    size = 4 * count
    kept = size * (3 if config.train.ema is None else 4)
    average = "" if config.train.ema is None else ", moving average"
    yield (
        f"`{recipe}`: {count / 1e6:.1f} M trained parameters, {size / 1e6:.0f} MB of float32 "
        f"gradients a step in {math.ceil(size / BUCKET)} buckets; {compute:g} s of compute. "
        f"Weights{average} and two moments make a checkpoint of {kept / 1e9:.1f} GB."
    )
    yield ""
    yield from table(size, compute)


def loading(annotations: Path, images: Path) -> Iterator[str]:
    """Measured here."""
    from alignmask.data import TrainingStream, train_dataset

    data = replace(
        recipes.r50_50ep().data,
        train_images=images, train_annotations=annotations, val_images=images, val_annotations=annotations,
    )  # fmt: skip
    dataset = train_dataset(data)  # imports and caches
    begin = time.process_time()
    dataset = train_dataset(data)
    seconds, size = time.process_time() - begin, annotations.stat().st_size / 1e6
    yield f"parsing: {seconds:.2f} s for {size:.1f} MB, {1000 * seconds / size:.0f} s for 1 GB"
    stream = TrainingStream(dataset, 20, 0)
    begin = time.process_time()
    for position in range(20):
        stream[position]
    yield f"loading: {(time.process_time() - begin) / 20:.3f} s for an image of {data.crop} pixels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe", choices=recipes.RECIPES, nargs="+", default=["r50_50ep", "swin_b_50ep"]
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of compute in a step")
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    if options.annotations is not None:
        print(*loading(options.annotations, options.images), sep="\n")
        return
    for recipe in options.recipe:
        print(*report(recipe, options.seconds), "", sep="\n")


if __name__ == "__main__":
    main()
