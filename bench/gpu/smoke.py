"""Every op and gradient against plain torch in float64: all dtypes, two shapes, with and without
atomics.

It exits with 1 on a fault. `small`: two dtypes alone, for the sanitizers.
"""

from __future__ import annotations

import sys

import torch
from common import DEVICE, Results, say
from torch import Tensor

from alignmask import ops
from tests.gpu import calls

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
SMALL = (torch.float32, torch.bfloat16)


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative to the largest element."""
    return (
        float((found.cpu().double() - wanted).abs().max() / (1 + wanted.abs().max()))
        if wanted.numel()
        else 0.0
    )


def main() -> int:
    results, small, faults = Results("smoke"), "small" in sys.argv, 0
    results["implementations"] = {op: ops.implementation(op, DEVICE) for op in ops.OPS}
    results["build"] = ops.gpu_build()
    worst: dict[str, float] = {}
    for deterministic in (False, True):
        for op in calls.SHAPES:
            for large in (False, True):
                for dtype in SMALL if small else TOLERANCE:
                    given = calls.inputs(op, large, dtype)
                    with ops.use_reference():
                        expected = calls.run(op, calls.to(given, "cpu", torch.float64))
                    torch.use_deterministic_algorithms(deterministic)
                    found = calls.run(op, calls.to(given, DEVICE))
                    torch.use_deterministic_algorithms(False)
                    largest = max(error(a, b) for a, b in zip(found, expected, strict=True))
                    name = f"{op} {str(dtype)[6:]}"
                    worst[name] = max(worst.get(name, 0.0), largest)
                    if not largest <= TOLERANCE[dtype]:
                        faults += 1
                        shape, order = (
                            "model" if large else "odd",
                            "deterministic" if deterministic else "atomics",
                        )
                        say(f"WRONG {name} {shape} {order}: {largest:.1e}")
    results["largest errors"] = worst
    results["faults"] = faults
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
