"""Floors of the ops' times by the counted model (bench/roofline.py) for the GPU at hand: model, not
measured.

It needs no GPU, only NVRTC and a disassembler: `prepare` runs it where there is time for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import GPU, Results, skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def instructions(architecture: int) -> dict[str, Any]:
    """Bytes and instructions of the model's calls, by its names; a call that it cannot count any
    more says so."""
    import roofline

    found: dict[str, Any] = {}
    for cases in (roofline.attention, roofline.others):
        try:
            for case in cases(architecture):
                found[case.name.strip()] = {"bytes": case.bytes, "instructions": case.instructions}
        except Exception as error:
            found[f"{cases.__name__}, from here on"] = {
                "failed": f"{type(error).__name__}: {error}"
            }
    return found


def main() -> None:
    import gpu_code

    architecture = int(sys.argv[1]) if len(sys.argv) > 1 else 90
    known = [a for a in gpu_code.ARCHITECTURES if a <= architecture]
    if not known:
        skip(f"the model knows nothing older than sm_{min(gpu_code.ARCHITECTURES)}")
    if reason := gpu_code.available(max(known)):
        skip(f"The counted model was skipped: {reason}")
    if gpu_code.disassembler() is None:
        skip(
            "The counted model was skipped because nvdisasm was not found (pip install "
            "nvidia-cuda-nvdisasm)."
        )
    results = Results("expected")
    results["architecture"] = max(known)
    results["calls"] = instructions(max(known))
    if GPU:
        import torch

        properties = torch.cuda.get_device_properties(0)
        results["multiprocessors"] = properties.multi_processor_count


if __name__ == "__main__":
    main()
