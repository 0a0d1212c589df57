"""How much of a training step the points of the mask losses take: the step with `mask_points`, and
with PointRend's composition in its place.

    python bench/mask_points_step.py --recipe nuclei_small --size 256 --instances 20
    python bench/mask_points_step.py --op  # not the step, but the op alone

Both take turns on one model, one batch and one thread. Times are the processor's, which other
programs on the machine change least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alignmask import ops
from alignmask.loss import Criterion
from alignmask.loss import criterion as module
from alignmask.model import build_model
from alignmask.recipes import RECIPES
from tests import tiny
from tests.loss import pointrend
from tests.ops import cases

Samples = tuple[torch.Tensor, torch.Tensor]


def op_alone(turns: int) -> None:
    for name in ("model_512", "model_1024"):
        logits, masks, index, count, seed = cases.mask_points(cases.MASK_POINTS[name])
        leaf = logits.clone().requires_grad_()
        ways = {
            "mask_points": lambda x, a=(masks, index, count, seed): ops.mask_points(x, *a)[0],
            "rand, grid_sample, topk": lambda x, a=(masks, index, count): pointrend.composed(x, *a)[
                0
            ],
        }
        passes = {
            "forward": lambda way, x=logits: way(x),
            "forward+backward": lambda way, x=leaf: torch.autograd.grad(way(x).sum(), x),
        }
        for label, run in passes.items():
            times: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(turns + 1):
                for way, function in ways.items():
                    start = time.process_time()
                    run(function)
                    if turn:
                        times[way].append(time.process_time() - start)
            report(f"{name} {label}", times)


def report(what: str, times: dict[str, list[float]]) -> None:
    for name, seconds in times.items():
        print(f"{what}, {name}: {1e3 * statistics.median(seconds):.1f} ms")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"{what}: x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", default="nuclei_small")
    parser.add_argument("--size", type=int, default=256, help="of the two images")
    parser.add_argument("--instances", type=int, default=20, help="in each of them")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--op", action="store_true", help="time the op alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.op:
        return op_alone(options.turns)
    torch.manual_seed(0)
    config = RECIPES[options.recipe]()
    model_config = replace(config.model, backbone=replace(config.model.backbone, pretrained=False))
    model = build_model(model_config).train()
    batch = tiny.batch((options.instances,) * 2, size=(options.size,) * 2, seed=0)
    batch = replace(batch, labels_G=batch.labels_G % model_config.num_classes)
    criterion = Criterion(model_config, config.loss)
    spent = 0.0

    def timed(sample):  # type: ignore[no-untyped-def]
        def run(*arguments: object) -> Samples:
            nonlocal spent
            start = time.process_time()
            found: Samples = sample(*arguments)[:2]
            spent += time.process_time() - start
            return found

        return run

    ways = {
        "mask_points": timed(module.uncertain_samples),
        "rand, grid_sample, topk": timed(pointrend.composed),
    }
    steps: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for name, way in ways.items():
            spent, start = 0.0, time.process_time()
            with patch.object(module, "uncertain_samples", way):
                criterion(model(batch), batch).total(config.loss).backward()
            model.zero_grad()
            if turn:
                steps[name].append(time.process_time() - start)
                parts[name].append(spent)
    report("step", steps)
    report("points in it", parts)


if __name__ == "__main__":
    main()
