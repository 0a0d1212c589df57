"""Instructions of every CPU kernel at a small fixed shape, counted by Valgrind: shows a slowdown on
the busiest machine.

    python bench/instructions.py             # count, beside what bench/instructions.json recorded
    python bench/instructions.py --record    # count and record

Needs valgrind (apt install valgrind), which knows AVX2 and not AVX-512. The compiled module is
called without torch, on NumPy arrays: once with a call and once with three, and half of the
difference is the count of a call. Float32, one thread. Another compiler makes other code: the
record says which one made it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_suffix(".json")
INSTRUCTION_SETS = ("baseline", "avx2")
Call = tuple[str, list[Any], dict[str, Any]]


def recorded_calls() -> dict[str, list[Call]]:
    """Title -> what an op and its gradient ask of the compiled module."""
    import torch
    from harness import cases

    from alignmask import ops

    def record(function: Callable[[], Any]) -> list[Call]:
        return [tuple(call) for call in cases.kernel_calls(function, 1)]

    def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> None:
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    deform = cases.encoder(128)
    value, levels, _, weights = cases.ms_deform_attn(deform)
    locations = cases.encoder_locations(deform, torch.Generator().manual_seed(0))
    _, _, *second = cases.ms_deform_attn_from_offsets(deform, "local")
    features, masks, owner, points = cases.masked_point_pool(
        cases.PoolShape(1, 64, (64, 64), (256, 256), 8, 2, 2048)
    )
    features = features.contiguous(memory_format=torch.channels_last)
    loss = cases.quality_focal_loss(cases.LossShape(1000, 80))
    looked_at = cases.mask_points(cases.PointsShape(4, (64, 64), (256, 256), 8, 12544))
    for tensor in (value, locations, weights, *second, features, looked_at[0], loss[0]):
        tensor.requires_grad_()

    deformed = record(
        lambda: gradients(
            ops.ms_deform_attn(value, levels, locations, weights), value, locations, weights
        )
    )
    offset = record(
        lambda: gradients(ops.ms_deform_attn_from_offsets(value, levels, *second), value, *second)
    )
    pooled = record(
        lambda: gradients(ops.masked_point_pool(features, masks, owner, points)[0], features)
    )
    low = record(lambda: ops.mask_iou(*cases.mask_iou(cases.IouShape(1, 100, (64, 64), 1, 15))))
    high = record(lambda: ops.mask_iou(*cases.mask_iou(cases.IouShape(1, 100, (64, 64), 4, 15))))
    chosen = record(lambda: gradients(ops.mask_points(*looked_at)[0], looked_at[0]))
    shape = cases.RleShape(20, (64, 64), *[(256, 256)] * 3)
    runs = record(lambda: ops.mask_rle(cases.mask_rle(shape, smooth=True), *shape.sizes))
    quality = record(lambda: gradients(ops.quality_focal_loss(*loss), loss[0]))
    return {
        "ms_deform_attn 128², forward": deformed[:1],
        "ms_deform_attn 128², backward": deformed[1:],
        "ms_deform_attn_from_offsets 128², forward": offset[:1],
        "ms_deform_attn_from_offsets 128², backward": offset[1:],
        "masked_point_pool 64 × 64² channels-last, 8 masks, 2 × 2048 points, forward": pooled[:1],
        "masked_point_pool 64 × 64² channels-last, 8 masks, 2 × 2048 points, backward": pooled[1:],
        "mask_iou 100 × 15 at 64²": low,
        "mask_iou 100 × 15, 64² upsampled to 256²": high,
        "mask_points 4 rows of 64², 12544 points, forward": chosen[:1],
        "mask_points 4 rows of 64², 12544 points, backward": chosen[1:],
        "mask_rle 20 masks, 64² to 256², what they measure": runs[:1],
        "mask_rle 20 masks, 64² to 256², their counts": runs[1:],
        "quality_focal_loss 1000 × 80, loss and gradient": quality,
    }


class Pickler(pickle.Pickler):
    """NumPy's pickles forget the order of an array's dimensions in memory; these keep it."""

    def reducer_override(self, item: Any) -> Any:
        if not isinstance(item, np.ndarray) or item.flags.c_contiguous:
            return NotImplemented
        axes = np.argsort([-stride for stride in item.strides], kind="stable")
        return np.transpose, (np.ascontiguousarray(item.transpose(axes)), np.argsort(axes))


def replay(core: str, calls: str, instruction_set: str, times: int) -> None:
    """What runs under Valgrind: the compiled module at path `core`, given the pickled calls."""
    spec = importlib.util.spec_from_file_location("alignmask._core", core)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.select_cpu_instruction_set(instruction_set)
    for name, arguments, options in pickle.loads(Path(calls).read_bytes()):
        for _ in range(times):
            getattr(module, name)(*arguments, **options)


def executed(core: str, calls: Path, instruction_set: str, times: int) -> int:
    """Instructions of the compiled module's own code.

    Those of the interpreter around it differ by millions from run to run.
    """
    with tempfile.NamedTemporaryFile(suffix=".callgrind") as profile:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile.name}"]
        command += [sys.executable, __file__, "--replay", core, str(calls)]
        command += [instruction_set, str(times)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return instructions_of(Path(core).name, Path(profile.name).read_text())


def instructions_of(module: str, profile: str) -> int:
    """Sum of a file's lines in Callgrind's profile, without what those lines call.

    The format: https://valgrind.org/docs/manual/cl-format.html
    """
    names: dict[str, str] = {}  # a file is named once, and is a number from then on
    total, inside, inclusive = 0, False, False
    for line in profile.splitlines():
        if named := re.fullmatch(r"c?ob=(\(\d+\))(?: (.*))?", line):
            name = names.setdefault(named[1], named[2] or "")
            if line.startswith("ob="):
                inside = Path(name).name == module
        elif line.startswith("calls="):
            inclusive = True
        elif re.match(r"[-+*\d]", line):
            total += int(line.split()[-1]) if inside and not inclusive else 0
            inclusive = False
    if not total:
        raise SystemExit(f"the profile has no instruction of {module}")
    return total


def count() -> dict[str, dict[str, int]]:
    """Title -> instruction set -> instructions of a call."""
    from alignmask import _core

    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, calls in recorded_calls().items():
            path = Path(folder, "calls.pkl")
            with path.open("wb") as file:
                Pickler(file).dump(calls)
            counts[title] = {}
            for name in INSTRUCTION_SETS:
                one, three = (executed(_core.__file__, path, name, times) for times in (1, 3))
                counts[title][name] = (three - one) // 2
                print(f"{title:<80} {name:<8} {counts[title][name]:>13,}", flush=True)
    return counts


def compiler(core: str) -> str:
    """As the compiler wrote its name into the module."""
    text = subprocess.run(
        ["readelf", "-p", ".comment", core], capture_output=True, text=True, check=True
    ).stdout
    return ", ".join(sorted(set(re.findall(r"\]\s+(.+)", text))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write bench/instructions.json")
    parser.add_argument("--replay", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        core, calls, instruction_set, times = options.replay
        return replay(core, calls, instruction_set, int(times))

    from alignmask import _core

    made_by, counts = compiler(_core.__file__), count()
    if options.record:
        RECORD.write_text(
            json.dumps({"compiler": made_by, "instructions": counts}, indent=1, ensure_ascii=False)
            + "\n"
        )
        return print(f"recorded in {RECORD}")
    record = json.loads(RECORD.read_text())
    print(f"\ncompiled by {made_by}; recorded: {record['compiler']}")
    for title, name in (
        (title, name) for title, sets in record["instructions"].items() for name in sets
    ):
        print(
            f"{title:<80} {name:<8} "
            f"{counts[title][name] / record['instructions'][title][name]:6.3f} of the record"
        )


if __name__ == "__main__":
    main()
