"""A training step of the paper's R50 model by parts: 4 images of 1024 x 1024, 7 instances each.

Precisions take turns on one model. Beside the wall time: the time of kernels alone, the parts with
a wait after each, the places where the host waits for the device, and the profiler's table of
kernels.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import DEVICE, GPU, WORK, B, Results, batch, rounds, skip, synchronize

try:
    from alignmask.loss import Criterion
    from alignmask.model import build_model
    from alignmask.recipes import r50_50ep
    from alignmask.training.graphs import GraphedForward
    from alignmask.training.optimizer import build_optimizer
except ImportError as error:
    skip(f"the training step is left out: {error}")

INSTANCES = 7


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


GRAPHS = "bf16, CUDA graphs"
VARIANTS: dict[str, tuple[torch.dtype, bool, Callable[[], Any]]] = {
    "bf16": (torch.bfloat16, True, contextlib.nullcontext),
    GRAPHS: (torch.bfloat16, True, contextlib.nullcontext),
    "tf32": (torch.float32, True, contextlib.nullcontext),
    "fp32": (torch.float32, False, contextlib.nullcontext),
    "bf16, no cuDNN attention": (torch.bfloat16, True, without_cudnn_attention),
}
"""dtype of autocast, TF32 in matrix products, what else."""


class Step:
    def __init__(self) -> None:
        config = r50_50ep()
        backbone = dataclasses.replace(config.model.backbone, pretrained=False)
        self.model_config, self.loss = (
            dataclasses.replace(config.model, backbone=backbone),
            config.loss,
        )
        if not GPU:
            from tests import tiny

            self.model_config, self.loss = (
                tiny.model_config(),
                dataclasses.replace(config.loss, points=64),
            )
        torch.manual_seed(0)
        self.model = build_model(self.model_config).to(DEVICE).train()
        self.criterion = Criterion(self.model_config, self.loss)
        self.graphed = GraphedForward(self.model)
        self.optimizer = build_optimizer(self.model, config.train)
        self.batch = batch(B, INSTANCES, self.model_config.num_classes)
        self.value = 0.0

    def run(self, variant: str, after: Callable[[str], None] = lambda part: None) -> None:
        dtype, tf32, context = VARIANTS[variant]
        torch.backends.cuda.matmul.allow_tf32 = tf32
        autocast = torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32)
        with context():
            with autocast:
                prediction = (self.graphed if variant == GRAPHS else self.model)(self.batch)
            loss = self.criterion(prediction, self.batch).total(self.loss)
            after("criterion")
            loss.backward()
            after("backward")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad()
        after("optimizer")
        self.value = loss.detach()

    def parts(self, variant: str, repeat: int) -> dict[str, float]:
        """Milliseconds of the model's children and of what follows; the device is waited for after
        each."""
        times: dict[str, list[float]] = collections.defaultdict(list)
        last = 0.0

        def after(part: str) -> None:
            nonlocal last
            synchronize()
            now = time.perf_counter()
            times[part].append(1e3 * (now - last))
            last = now

        hooks = [
            child.register_forward_hook(lambda *_, name=name: after(name))
            for name, child in self.model.named_children()
        ]
        for _ in range(repeat):
            synchronize()
            last = time.perf_counter()
            self.run(variant, after)
        for hook in hooks:
            hook.remove()
        return {part: statistics.median(taken) for part, taken in times.items()}


def waits(step: Step) -> dict[str, int]:
    """Where in a step the host waits for the device, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step.run("bf16")
        torch.cuda.set_sync_debug_mode("default")
    texts = [w for w in caught if "synchroniz" in str(w.message)]
    return dict(
        collections.Counter(f"{'/'.join(w.filename.split('/')[-3:])}:{w.lineno}" for w in texts)
    )


def profile(step: Step, variant: str = "bf16", file: str = "step_profile.txt") -> dict[str, int]:
    """Launches and waits by torch's profiler; its table of kernels goes into a file."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    ) as run:
        step.run(variant)
        synchronize()
    averages = run.key_averages()
    order = "self_device_time_total" if GPU else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=70, max_name_column_width=90)
    (WORK / "results").mkdir(parents=True, exist_ok=True)
    (WORK / "results" / file).write_text(table)
    counts = {event.key: event.count for event in averages}
    launches = sum(count for key, count in counts.items() if "LaunchKernel" in key)
    watched = (
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaMemcpyAsync",
        "aten::nonzero",
        "aten::item",
    )
    return {"launches": launches, **{key: counts[key] for key in watched if key in counts}}


def inference(step: Step) -> dict[str, Any]:
    """One image: the forward pass alone, and with its postprocessing."""
    step.model.eval()
    one = batch(1, INSTANCES, step.model_config.num_classes)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            step.model(one)

    def predict() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            step.model.predict(one)

    found = rounds({"forward": forward, "predict": predict}, 10)
    step.model.train()
    return found


def main() -> None:
    results, step = Results("step"), Step()
    variants = list(VARIANTS) if GPU else ["bf16", "fp32"]
    results.attempt(
        "training step", lambda: rounds({name: lambda n=name: step.run(n) for name in variants}, 5)
    )
    results["loss at the end"] = float(step.value)
    for name in ("bf16", "tf32"):
        results.attempt(f"parts {name}, ms", lambda n=name: step.parts(n, 4 if GPU else 1))
    results.attempt("inference of one image, bf16", lambda: inference(step))
    results.attempt("profile", lambda: profile(step))
    if GPU:
        results.attempt("waits for the device", lambda: waits(step))
        results.attempt(
            "profile, CUDA graphs", lambda: profile(step, GRAPHS, "step_profile_graphs.txt")
        )


def compiled() -> None:
    """The layers under torch.compile, then the backbone, too, in graphs as above: a step, and the
    time of its kernels. Compiling takes minutes; `warm` compiles alone."""
    results, step = Results("compiled_step"), Step()
    model = step.model
    for name, regions in (
        ("layers", [*model.pixel_decoder.layers, *model.query_decoder.layers]),
        ("layers and backbone", [model.backbone.body]),
    ):
        for region in regions:
            region.compile(dynamic=False)
        step.graphed = GraphedForward(model)
        results.attempt(
            f"training step, {name} compiled",
            lambda: rounds({GRAPHS: lambda: step.run(GRAPHS)}, 1 if "warm" in sys.argv else 5),
        )
    if "warm" not in sys.argv:
        results.attempt(
            "profile, compiled", lambda: profile(step, GRAPHS, "step_profile_compiled.txt")
        )


if __name__ == "__main__":
    if "compiled" not in sys.argv:
        main()
    elif GPU:
        compiled()
    else:  # Inductor's compiler takes longer than all the rest
        skip("a compiled training step is left out without a GPU")
