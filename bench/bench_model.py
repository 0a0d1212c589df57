"""Whole models beside Hugging Face's Mask2Former with the same weights, in turns, and beside their
own floor; AlignMask's training step beside the baseline's.

`make bench-model`, or `python bench/bench_model.py --only "r50 512"`. Weights are random, nothing
is downloaded. "kernel" is this project; `floor` is the time of its convolutions, matrix products
and attention alone (bench/floor.py). With `--memory`, the memory that one call takes beyond weights
and inputs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from floor import floor, products_of
from harness import Result, Row, environment, line, quartiles, write
from pycocotools import mask as mask_utils

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alignmask.config import LossConfig, ModelConfig
from alignmask.data import Batch
from alignmask.loading import from_huggingface
from alignmask.loss import Criterion
from alignmask.model import build_model
from alignmask.recipes import r50_50ep
from tests import tiny
from tests.model import peers

MASKS = 100


@dataclass(frozen=True)
class Case:
    backbone: str
    size: int
    images: int
    kind: str
    """"inference", "masks" (inference and the 100 best masks, encoded, at the image's size),
    "training" (forward, losses, backward) or "aligned" (AlignMask's step beside the baseline's)."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.backbone} {self.images} x {self.size}^2"


CASES = (
    Case("r50", 512, 1, "inference"),
    Case("r50", 1024, 1, "inference"),
    Case("swin-t", 512, 1, "inference"),
    Case("r50", 1024, 1, "masks"),
    Case("r50", 512, 2, "training"),
    Case("r50", 512, 2, "aligned"),
)
INSTANCES = 7


def published(backbone: str) -> Any:
    config = {"r50": peers.RESNET50, "swin-t": peers.SWIN_T}[backbone]
    return peers.mask2former(config, **peers.PUBLISHED, use_auxiliary_loss=True)


class Sides:
    """Both models, and one batch for both."""

    def __init__(self, case: Case) -> None:
        self.theirs = published(case.backbone)
        self.ours = from_huggingface(self.theirs).model
        self.batch = batch(case)
        self.pixels = (self.batch.image_BCHW - self.ours.backbone.mean) / self.ours.backbone.std

    def inference(self) -> dict[str, Callable[[], Any]]:
        def ours() -> Any:
            with torch.inference_mode():
                return self.ours(self.batch).class_logits_LBRC[-1]

        def theirs() -> Any:
            with torch.inference_mode():
                return self.theirs(pixel_values=self.pixels).class_queries_logits

        return {"kernel": ours, "transformers": theirs}

    def masks(self) -> dict[str, Callable[[], Any]]:
        size = self.batch.image_BCHW.shape[-2:]

        def theirs() -> Any:
            with torch.inference_mode():
                found = self.theirs(pixel_values=self.pixels)
                scores_QC = found.class_queries_logits[0].softmax(-1)[:, :-1]
                query = scores_QC.flatten().topk(MASKS).indices // scores_QC.shape[1]
                logits = F.interpolate(
                    found.masks_queries_logits[:, query], size=size, mode="bilinear"
                )[0]
                masks = (logits > 0).to(torch.uint8).permute(1, 2, 0).numpy()
                return mask_utils.encode(np.asfortranarray(masks))

        return {"kernel": lambda: self.ours.predict_encoded(self.batch), "transformers": theirs}

    def training(self) -> dict[str, Callable[[], Any]]:
        self.ours.train(), self.theirs.train()
        of, loss = self.batch, LossConfig()
        criterion = Criterion(self.ours.config, loss)
        images = range(len(of.image_BCHW))
        labels = [of.labels_G[of.owner_G == i] for i in images]
        masks = [of.masks_GHW[of.owner_G == i].float() for i in images]

        def ours() -> None:
            self.ours.zero_grad(set_to_none=True)
            criterion(self.ours(of), of).total(loss).backward()

        def theirs() -> None:
            self.theirs.zero_grad(set_to_none=True)
            self.theirs(
                pixel_values=self.pixels, mask_labels=masks, class_labels=labels
            ).loss.backward()

        return {"kernel": ours, "transformers": theirs}


def batch(case: Case) -> Batch:
    return tiny.batch((INSTANCES,) * case.images, size=(case.size,) * 2)


def aligned(case: Case) -> dict[str, Callable[[], Any]]:
    """AlignMask's step, and the baseline's: the same model with softmax classes and without aligned
    queries."""
    recipe = r50_50ep()
    full = replace(recipe.model, backbone=replace(recipe.model.backbone, pretrained=False))
    plain = replace(full, classification="softmax", aligned_queries=None)

    def step(config: ModelConfig, loss: LossConfig) -> Callable[[], None]:
        torch.manual_seed(0)
        model, criterion, of = build_model(config).train(), Criterion(config, loss), batch(case)

        def run() -> None:
            model.zero_grad(set_to_none=True)
            criterion(model(of), of).total(loss).backward()

        return run

    return {"kernel": step(full, recipe.loss), "baseline": step(plain, LossConfig())}


def calls_of(case: Case) -> dict[str, Callable[[], Any]]:
    return aligned(case) if case.kind == "aligned" else getattr(Sides(case), case.kind)()


def peaks(case: Case, threads: int) -> dict[str, float]:
    """Of every candidate, the GiB that its first call takes."""
    found = {}
    for name in ("kernel", "baseline" if case.kind == "aligned" else "transformers"):
        command = [sys.executable, __file__, "--only", case.name, "--threads", str(threads)]
        done = subprocess.run(
            [*command, "--peak-of", name], check=True, capture_output=True, text=True
        )
        found[name] = float(done.stdout.split()[-1])
    return found


def peak(call: Callable[[], Any]) -> float:
    """GiB, beyond what the process has in memory before the call. Linux only."""

    def resident(which: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(rf"{which}:\s+(\d+) kB", status)[0])

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    call()
    return (resident("VmHWM") - before) / 2**20


def measure(case: Case, turns: int, threads: int) -> Row:
    torch.set_num_threads(threads)
    calls = calls_of(case)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):  # the first one warms up
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - began)
    recorder = products_of(calls["kernel"])
    times["floor"] = [floor(recorder, min(turns, 3))]
    labels = {"case": case.name}
    shape = {"B": case.images, "H": case.size, "W": case.size}
    results = [Result(name, len(taken), *quartiles(taken)) for name, taken in times.items()]
    return Row("model", labels, threads, shape, {}, results)


def chosen(only: str) -> Iterator[Case]:
    yield from (case for case in CASES if only in case.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help='cases whose name holds this, e.g. "training"')
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="no results file")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        torch.set_num_threads(options.threads)
        (case,) = chosen(options.only)
        print(peak(calls_of(case)[options.peak_of]))
        return
    if options.memory:
        for case in chosen(options.only):
            found = peaks(case, options.threads)
            print(
                case.name, *(f"{name} {value:.2f} GiB" for name, value in found.items()), sep="  "
            )
        return
    about, rows = environment(), []
    print(f"{about['cpu']}, torch {about['torch']}, transformers {transformers.__version__}")
    for case in chosen(options.only):
        rows.append(measure(case, options.turns, options.threads))
        print(line(rows[-1]), flush=True)
    if not options.dry and rows:
        print(f"written to {write(about | {'transformers': transformers.__version__}, rows)}")


if __name__ == "__main__":
    main()
