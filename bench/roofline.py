"""A counted model of the CUDA kernels, at the shapes of the paper: model, not measured.

Two floors under a kernel's time. Memory: the bytes that must cross the device memory's bus at least
once, by its bandwidth. Instructions: what the warps issue, counted in the machine code of the loops
that do the work, by what the multiprocessors can issue (four instructions per clock each). Real
kernels are slower than both: caches miss, latency shows, loops have ends. Both branches of a
condition are counted, so the instructions are an upper bound of what a loop issues.

mask_rle is not counted: the sizes decide whether its only loop resizes twice, once, or not at all.

`scalar` is deformable attention by the plan that most public kernels share, written anew for this
comparison (bench/one_thread_per_scalar.cuh). Its instructions are counted in the same way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gpu_code

SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Gpu:
    name: str
    code: int
    """Whose machine code is counted; sm_75's for the V100, since no current disassembler reads
    sm_70's."""
    bandwidth: tuple[float, ...]
    """GB/s, of the variants."""
    multiprocessors: int
    clock: float
    """GHz, boosted."""

    def issues(self) -> float:
        """Instructions of warps per second."""
        return self.multiprocessors * 4 * self.clock * 1e9


GPUS = (
    Gpu("V100", 75, (900,), 80, 1.53),
    Gpu("A100", 80, (1555, 2039), 108, 1.41),
    Gpu("H100", 90, (3350,), 132, 1.98),
)

# The paper's shapes: 4 images of 1024 x 1024, 256 channels; the pixel decoder's tokens of strides
# 32, 16, 8 are its queries.
B, QUERIES, N, D, L, P = 4, 21504, 8, 32, 3, 4
POINTS = B * QUERIES * N * L * P
# Masks per image, queries with the aligned ones.
MASKS, CLASSES, MODEL_QUERIES, OUTPUTS = 20, 80, 200, 10
UNROLLED = 2  # corners in the innermost loop of value's gradient
# That a tile of 64 queries has for a token, say: points within some two pixels.
CORNERS_OF_TOKEN = 4
SETS, SET_POINTS, COVERED = 5, 12544, 0.1  # an instance's mask covers a tenth of the image, say
# Of words of a prediction have pixels that are set, of its cells lie on its border, say.
SET, MIXED = 0.2, 0.02
# Rows with a mask loss: of 7 instances an image and 35 aligned queries. Candidates are drawn in
# pairs, once for each 11 bits of their float32 distances from 0, and once more to be written.
LOSS_ROWS, LOSS_MASKS, CANDIDATE_PAIRS, KEY_DIGITS = B * OUTPUTS * 42, B * 7, 3 * SET_POINTS // 2, 3
FRESH = SET_POINTS // 4


@dataclass(frozen=True)
class Case:
    """One call: `bytes` that cross the memory's bus, `requested` by loads from caches,
    `instructions` of warps."""

    name: str
    bytes: float
    requested: float
    instructions: float
    unit: str
    units: float


def loops(sass: str) -> list[list[str]]:
    """Instructions between a label and the branch back to it."""
    lines, labels, found = sass.splitlines(), {}, []
    for i, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = i
        elif (jump := re.search(r"\bBRA[.\w]* (?:\S+, )?`\((\S+)\)", line)) and jump[1] in labels:
            found.append(
                [inner for inner in lines[labels[jump[1]] : i + 1] if not inner.endswith(":")]
            )
    return found


def loop(sass: str, *wanted: str) -> int:
    """Instructions in the shortest loop that has them all.

    Raises:
        ValueError: There is none: the kernel has changed, and the model must follow.
    """
    fitting = [
        body
        for body in loops(sass)
        if all(any(re.search(w, line) for line in body) for w in wanted)
    ]
    if not fitting:
        raise ValueError(f"no loop with {' and '.join(wanted)}")
    return min(map(len, fitting))


def code(op: str, name: str, architecture: int) -> str:
    kernel = next(kernel for kernel in gpu_code.kernels(op, architecture) if kernel.name == name)
    if kernel.sass is None:
        raise SystemExit("roofline: there is no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    return kernel.sass


@functools.cache
def scalar_code(name: str, architecture: int) -> str:
    compiled = gpu_code.nvrtc_for(architecture).compile(
        "one_thread_per_scalar.cuh", [name], architecture, SOURCES
    )
    sass = gpu_code.sass_of(gpu_code.disassembler(), compiled.cubin)
    if sass is None:
        raise SystemExit("roofline: there is no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    return sass[compiled.symbols[name]]


def attention(architecture: int) -> Iterator[Case]:
    """Forward and backward of ms_deform_attn, value and points in one precision. Points and weights
    are read by all of them once; every point has four corners of D channels."""
    per_query = B * QUERIES * N * D
    for dtype, size, lanes, vector in (("float", 4, 8, 4), ("Half", 2, 4, 8)):
        read = size * (per_query + 3 * POINTS)
        requested = size * POINTS * (4 * D + 3)

        forward = code(
            "ms_deform_attn", f"ms_deform_attn_forward<{dtype}, {vector}, {lanes}>", architecture
        )
        main, both = loop(forward, r"LDG\.E\.128"), loop(forward, r"LDG\.E\.128", r"STS\.128")
        # One lane places a point, all lanes gather.
        issued = POINTS * (main * lanes + both - main) / 32
        yield Case(
            f"ms_deform_attn {dtype}", read + size * per_query, requested, issued, "point", POINTS
        )
        if dtype == "float":
            plain = loop(scalar_code("scalar_forward<32>", architecture), r"LDG")
            yield Case(
                "  scalar float",
                read + size * per_query,
                requested * D / 32,
                POINTS * plain,
                "point",
                POINTS,
            )

        backward = code(
            "ms_deform_attn", f"ms_deform_attn_backward<{dtype}, {vector}, {lanes}>", architecture
        )
        wide = r"LDG\.E\.128"
        main, both = loop(backward, wide, r"SHFL"), loop(backward, wide, r"SHFL", r"STS\.128")
        issued = POINTS * (main * lanes + both - main) / 32
        # The gradient of value: a thread sorts the corners of a point, then a warp adds up those of
        # a token.
        sums = code("ms_deform_attn", f"ms_deform_attn_value_gradient<{dtype}, true>", architecture)
        corner, token, tile = (
            loop(sums, r"LDS\.64", r"FFMA"),
            loop(sums, r"RED"),
            loop(sums, r"ATOMS\.ADD"),
        )
        issued += POINTS * (
            (tile - token) / 32 + 4 * corner / UNROLLED + 4 * (token - corner) / CORNERS_OF_TOKEN
        )
        # The value's gradient is summed in float32: zeroed, then added to in the L2 cache, written
        # once; half: converted.
        written = 2 * 4 * per_query + (6 * per_query if size == 2 else 0) + 3 * size * POINTS
        total = read + size * per_query + written
        asked = requested + 4 * POINTS * 4 * D / CORNERS_OF_TOKEN
        yield Case(f"ms_deform_attn backward {dtype}", total, asked, issued, "point", POINTS)
        if dtype == "float":
            plain = scalar_code("scalar_backward<32>", architecture)
            main, serial = loop(plain, r"RED"), loop(plain, r"LDS")
            asked = requested + 4 * POINTS * 4 * D
            yield Case(
                "  scalar float", total, asked, POINTS * (main + 31 * serial), "point", POINTS
            )


def others(architecture: int) -> Iterator[Case]:
    features, pixels = B * 256 * 256 * 256, 256 * 256
    pairs = B * MASKS * SETS * SET_POINTS
    for dtype, size, vector in (("float", 4, 4), ("Half", 2, 8)):
        sass = code(
            "masked_point_pool", f"masked_point_pool_forward<{dtype}, {vector}>", architecture
        )
        main, both = loop(sass, r"LDG\.E\.128"), loop(sass, r"LDG\.E\.128", r"LDG\.E\.U8")
        # A block has 32 vectors of channels: points are placed again for each block of channels.
        issued = pairs * (COVERED * main + (both - main) / 32) * 256 / (32 * vector)
        bytes_ = size * features + B * MASKS * 1024 * 1024 + B * SETS * SET_POINTS * 8
        requested = pairs * (4 + 8) + pairs * COVERED * 4 * 256 * size
        yield Case(
            f"masked_point_pool {dtype}",
            bytes_,
            requested,
            issued,
            "point of a set and instance",
            pairs,
        )
    for dtype, size in (("float", 4), ("Half", 2)):
        sass = code("mask_iou", f"mask_iou_count_cells<{dtype}>", architecture)
        bits = B * MASKS * 1024 * 1024 / 8
        bytes_ = size * B * MODEL_QUERIES * pixels + B * MASKS * 1024 * 1024 + 2 * bits
        # A warp's step: a row of a word, 31 cells, of 16 predictions, and one row more for every
        # eight. Then one step per prediction that is set somewhere in the word, and one per 32
        # mixed cells, with one per four targets.
        row, some_set = loop(sass, r"STS\.128", r"VOTE"), loop(sass, r"SHFL", r"POPC", r"ATOMS")
        mixed, targets = loop(sass, r"FMUL", r"LDG\.E\.U16"), loop(sass, r"LDG\.E\.U16")
        words = B * MODEL_QUERIES * 257 * 9
        issued = words / 16 * 9 / 8 * (row - some_set - mixed) + words * SET * some_set
        issued += words * 31 * MIXED / 32 * (mixed - targets + (MASKS + 1) / 4 * targets)
        yield Case(
            f"mask_iou to 1024 x 1024 {dtype}",
            bytes_,
            bytes_,
            issued,
            "logit",
            B * MODEL_QUERIES * pixels,
        )
    for dtype, size in (("float", 4), ("Half", 2)):
        sass = code("mask_points", f"mask_points_forward<{dtype}>", architecture)
        look, write = loop(sass, r"ATOMS", r"LDG"), loop(sass, r"BAR", r"STG", r"LDG")
        points, each = LOSS_ROWS * SET_POINTS, loop(sass, r"LDG", r"STG\.E")
        issued = LOSS_ROWS * CANDIDATE_PAIRS / 32 * (KEY_DIGITS * look + write)
        issued += LOSS_ROWS * FRESH / 32 * each
        logits = LOSS_ROWS * pixels
        bytes_ = size * logits + LOSS_MASKS * 1024 * 1024 + points * (3 * 4 + size)
        asked = 2 * LOSS_ROWS * CANDIDATE_PAIRS * (KEY_DIGITS + 1) * 4 * size
        yield Case(f"mask_points {dtype}", bytes_, asked, issued, "point", points)
        sass = code("mask_points", f"mask_points_backward<{dtype}>", architecture)
        issued = points / 32 * sum(not line.endswith(":") for line in sass.splitlines())
        # Sums in float32: zeroed, then added to in the L2 cache, written once; half: converted.
        bytes_ = points * (2 * 4 + size) + 2 * 4 * logits + (6 * logits if size == 2 else 0)
        yield Case(f"mask_points backward {dtype}", bytes_, bytes_, issued, "point", points)
    rows = B * OUTPUTS * MODEL_QUERIES
    for dtype, size, vector in (("float", 4, 4), ("Half", 2, 8)):
        sass = code(
            "quality_focal_loss",
            f"quality_focal_loss_forward<{dtype}, {vector}, true>",
            architecture,
        )
        bytes_ = rows * CLASSES * (size + 4) + rows * (8 + 2 * size)
        issued = rows * CLASSES / vector * loop(sass, r"LDG\.E\.128") / 32
        yield Case(f"quality_focal_loss {dtype}", bytes_, bytes_, issued, "logit", rows * CLASSES)


def table(gpu: Gpu) -> Iterator[str]:
    """Instructions are those of warps, per thousand units."""
    head = "".join(f"  memory {bandwidth:.0f} GB/s" for bandwidth in gpu.bandwidth)
    yield f"{gpu.name} (code of sm_{gpu.code}; {gpu.multiprocessors} multiprocessors at {gpu.clock} GHz)"
    yield f"  {'call':<34}{'MB':>7}{'MB asked':>10}{'instr./1000':>13}  unit{'':<25}{head}  instructions  bound by"
    for cases in (attention, others):
        for case in cases(gpu.code):
            memory = [case.bytes / bandwidth / 1e6 for bandwidth in gpu.bandwidth]
            issue = 1e3 * case.instructions / gpu.issues()
            cells = "".join(
                f"{ms:>{len(f'  memory {b:.0f} GB/s') - 3}.3f} ms"
                for ms, b in zip(memory, gpu.bandwidth, strict=True)
            )
            yield (
                f"  {case.name:<34}{case.bytes / 1e6:>7.0f}{case.requested / 1e6:>10.0f}"
                f"{1e3 * case.instructions / case.units:>13.0f}  "
                f"{case.unit:<29}{cells}{issue:>11.3f} ms"
                f"  {'instructions' if issue > max(memory) else 'memory'}"
            )


def main() -> None:
    print("Floors under the time of one call: model, not measured.\n")
    for gpu in GPUS:
        if reason := gpu_code.available(gpu.code):
            print(f"{gpu.name}: left out: {reason}")
            continue
        print("\n".join(table(gpu)) + "\n")


if __name__ == "__main__":
    main()
