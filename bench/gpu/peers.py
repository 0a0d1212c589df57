"""Multi-scale deformable attention of others on the same inputs, softmax of the weights inside.

deformops (PyPI: Triton and CUDA), and the usual form in plain torch, a `grid_sample` per level,
eager and under torch.compile. Those get finished locations; ours works them out from offsets and
reference points, too. `peak MiB` is what a forward and backward pass needs beside its inputs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    GPU,
    LEVELS,
    SIDE,
    WORK,
    B,
    Results,
    attention,
    peak_gib,
    say,
    skip,
    times_of,
)
from torch import Tensor

from alignmask import ops

BUILT = WORK / "deformops_built"
"""Says that deformops has compiled its CUDA kernels, which is not to happen while times are
taken."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of value, locations (ours: offsets), and weights before softmax."""


def grid_sample(value_BSND: Tensor, locations_BQNLP2: Tensor, logits_BQNLP: Tensor) -> Tensor:
    """As in Deformable DETR and most that follow it, in the dtype of the value."""
    B, _, N, D = value_BSND.shape
    _, Q, _, L, P, _ = locations_BQNLP2.shape
    weights = logits_BQNLP.flatten(-2).softmax(-1).transpose(1, 2).reshape(B * N, 1, Q, L * P)
    grids = 2 * locations_BQNLP2 - 1
    sampled, start = [], 0
    for level, (h, w) in enumerate(LEVELS):
        tokens = value_BSND[:, start : start + h * w]
        start += h * w
        maps = tokens.flatten(2).transpose(1, 2).reshape(B * N, D, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(
            F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    out = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
    return out.view(B, N * D, Q).transpose(1, 2)


def deformops() -> dict[str, Attention]:
    """Its backends that may run here. The CUDA one is compiled on first use, which needs ninja and
    nvcc."""
    if shutil.which("ninja") and shutil.which("nvcc"):
        os.environ.setdefault("DEFORMOPS_COMPILE", "1")
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str((WORK / "extensions").resolve()))
    from deformops.registry import Backend, msda

    shapes = torch.tensor(LEVELS, device=DEVICE)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])

    def by(backend: Any) -> Attention:
        def call(value: Tensor, locations: Tensor, logits: Tensor) -> Tensor:
            out = msda(
                value,
                shapes,
                starts,
                locations,
                logits.flatten(3),
                method="softmax",
                backend=backend,
            )
            return out.reshape(out.shape[0], out.shape[1], -1)

        return call

    names = (
        {"triton": "deformops Triton", "cuda": "deformops CUDA"}
        if GPU
        else {"eager": "deformops eager"}
    )
    return {name: by(getattr(Backend, backend.upper())) for backend, name in names.items()}


def candidates() -> dict[str, Attention]:
    found: dict[str, Attention] = {}
    try:
        found |= deformops()
    except Exception as error:  # another project's import may fail in any way
        say(f"deformops is left out: {type(error).__name__}: {error}")
    if not BUILT.exists() and found.pop("deformops CUDA", None):
        say("deformops CUDA is left out: it was not compiled beforehand (`peers.py build`)")
    found["grid_sample"] = grid_sample
    return found


def build() -> None:
    """Have deformops compile its CUDA kernels: minutes of processors, not of a GPU."""
    call = deformops()["deformops CUDA"]
    value, levels, reference, offsets, logits = attention(torch.float32, images=1)
    leaves = [x.requires_grad_() for x in (value, offsets.sigmoid(), logits)]
    torch.autograd.grad(call(*leaves).sum(), leaves)
    BUILT.touch()
    say("deformops CUDA: compiled")


def compare(
    results: Results, dtype: torch.dtype, spread: float, images: int, compiled: bool
) -> None:
    label = f"{images} x {SIDE}^2 {str(dtype)[6:]} spread {spread:g}"
    value, levels, reference, offsets, logits = attention(dtype, spread, images)
    sizes = torch.tensor([(w, h) for h, w in LEVELS], device=DEVICE, dtype=torch.float32)
    locations = reference[:, :, None, :, None] + offsets.float() / sizes[:, None]
    exact = None
    if dtype == torch.float32 and images == 1:
        with ops.use_reference():
            doubles = (x.double() for x in (reference, offsets, logits))
            exact = ops.ms_deform_attn_from_offsets(value.double(), levels, *doubles)

    def ours(v: Tensor, o: Tensor, w: Tensor) -> Tensor:
        return ops.ms_deform_attn_from_offsets(v, levels, reference, o, w)

    sides = {"AlignMask": ours, **candidates()}
    if compiled:  # which takes longer than all the rest
        torch.compiler.reset()
        sides["grid_sample, torch.compile"] = torch.compile(grid_sample, dynamic=False)
    for name, call in sides.items():
        places = offsets if name == "AlignMask" else locations.to(dtype)
        leaves = tuple(x.detach().clone().requires_grad_() for x in (value, places, logits))

        def run(call: Any = call, leaves: Any = leaves) -> dict[str, Any]:
            out = call(*leaves)
            found = times_of(lambda: call(*leaves), leaves)
            held = torch.cuda.memory_allocated() / 2**20 if GPU else 0.0
            found["peak MiB"] = (
                1024 * peak_gib(lambda: torch.autograd.grad(call(*leaves).sum(), leaves)) - held
            )
            if exact is not None:
                found["relative error"] = float(
                    (out.detach().double() - exact).norm() / exact.norm()
                )
            return found

        results.attempt(f"{label}: {name}", run)


def main() -> None:
    if "build" in sys.argv:
        try:
            build()
        except Exception as error:
            skip(f"deformops CUDA is left out: {type(error).__name__}: {str(error)[:300]}")
        return
    results = Results("peers")
    cases = [
        (torch.float32, 2.0, B),
        (torch.bfloat16, 2.0, B),
        (torch.float32, 2.0, 1),
        (torch.float16, 2.0, B),
    ]
    cases += [(torch.bfloat16, 8.0, B), (torch.bfloat16, 2.0, 1)]
    for i, (dtype, spread, images) in enumerate(cases if GPU else cases[:1]):
        compare(results, dtype, spread, images, compiled=GPU and i < 2)


if __name__ == "__main__":
    main()
