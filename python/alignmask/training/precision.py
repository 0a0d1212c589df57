"""The number formats that a training step computes in, chosen for the GPU at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from alignmask.config import PrecisionChoice


@dataclass(frozen=True)
class Precision:
    autocast: Literal["no", "bf16", "fp16"]
    """Number format that autocast uses instead of float32: Accelerate's `mixed_precision`."""
    tf32: bool
    """Whether matrix products and convolutions of float32 numbers round their inputs to TF32."""

    def __str__(self) -> str:
        if self.autocast == "no":
            return "TF32 products" if self.tf32 else "float32"
        return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast with loss scaling"}[
            self.autocast
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Sets torch's switches for TF32 within this context only, so that evaluation is not
        affected."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def resolve(choice: PrecisionChoice, capability: tuple[int, int] | None) -> Precision:
    """What `train.precision` means on a GPU of this compute capability; None: on a CPU.

    auto: bfloat16 where the GPU computes in it (8.0 and newer), else float16; float32 on a CPU.
    Raises ValueError for bf16 on an older GPU: torch would emulate it, slower than float32.
    """
    if choice == "bf16" and capability is not None and capability < (8, 0):
        raise ValueError(
            f"train.precision bf16: this GPU (compute capability {capability[0]}.{capability[1]}) "
            "has no bfloat16 "
            "arithmetic; use fp16, or auto"
        )
    if choice == "auto":
        choice = "fp32" if capability is None else "bf16" if capability >= (8, 0) else "fp16"
    autocast: Literal["no", "bf16", "fp16"] = (
        "bf16" if choice == "bf16" else "fp16" if choice == "fp16" else "no"
    )
    return Precision(autocast, tf32=choice != "fp32")


def capability_at_hand() -> tuple[int, int] | None:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None
