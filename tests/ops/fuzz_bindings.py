"""Calls every function of `alignmask._core` with random arguments, most of them wrong.

    python -m tests.ops.fuzz_bindings --calls 100000 --seed 1

A call may only return, or raise one of `REFUSALS` with a message that names the op and an argument.
It writes nothing but its outputs: those lie in holders whose other bytes are compared, as are the
inputs. A crash shows itself (run it under AddressSanitizer: `make sanitize`); a call that hangs for
two minutes ends the process with a traceback. Call n of a seed is always the same: `--only n`
repeats it alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from alignmask import _core
from tests.ops import fuzz_junk
from tests.ops.fuzz_functions import FUNCTIONS, MAY_BE_ABSENT
from tests.ops.fuzz_holder import Holder
from tests.ops.fuzz_junk import HUGE, Rng, pick

REFUSALS = (TypeError, ValueError, OverflowError, BufferError, MemoryError)
FLOATS = ("float32", "float64", "float16", "bfloat16")
WIDER = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}


def sizes_of(rng: Rng, function: str) -> dict[str, int]:
    """A size for every letter: small, often 0 or 1, now and then huge. (Not where a loop over one
    repeated element or over nothing would be legal, and endless.)
    """
    sizes = {letter: pick(rng, 0, 1, 1, 2, 3, 5, 9) for letter in "BQSNDLPECGTKHWhwR"}
    sizes["D"], sizes["C"] = pick(rng, 0, 1, 3, 8, 20, 70), pick(rng, 0, 1, 3, 16, 17, 80)
    sizes["w"] = pick(rng, 0, 1, 2, 63, 64, 65)
    if rng.random() < 0.03:
        letter = pick(rng, *sizes)
        if not (function.startswith("ms_deform_attn") and letter in "BQNLP"):
            sizes[letter] = pick(rng, *(HUGE[-3:] if letter in "HWhw" else HUGE))
    return sizes


def numbers(rng: Rng, view: Any) -> None:
    scale = pick(rng, 0.5, 0.5, 0.5, 10, 1e30)
    if view.dtype == np.float16:
        scale = min(scale, 1e4)
    view[...] = rng.normal(0.5, scale, view.shape) if view.size < 1e6 else scale
    if view.size and rng.random() < 0.1:
        view.flat[rng.integers(view.size)] = pick(rng, np.nan, np.inf, -np.inf)


def integers(low: int, high: int) -> Callable[[Rng, Any], None]:
    """Values in [low, high), but for one in fifty."""

    def fill(rng: Rng, view: Any) -> None:
        view[...] = rng.integers(low, max(high, low + 1), view.shape)
        if view.size and rng.random() < 0.02:
            view.flat[rng.integers(view.size)] = pick(
                rng, -2, -1, high, high + 1, 2**31 - 1, -(2**31)
            )

    return fill


def sums_up_to(end: int) -> Callable[[Rng, Any], None]:
    """Running sums that end there, but for one in fifty."""

    def fill(rng: Rng, view: Any) -> None:
        integers(0, min(end, 2**31 - 1) + 1)(rng, view)
        if rng.random() < 0.98:
            view[...] = np.sort(view, axis=None).reshape(view.shape)

    return fill


def masks(rng: Rng, view: Any) -> None:
    view[...] = rng.integers(0, 2, view.shape)


def tensor(
    rng: Rng, name: str, letters: str, sizes: dict[str, int], output: bool, dtype: str
) -> Holder | Any:
    shape = [int(letter) if letter.isdigit() else sizes[letter] for letter in letters]
    fill: Callable[[Rng, Any], None] = numbers
    of_mask_points = letters in ("RK", "RK2") and name in ("targets", "points")
    of_a_loss = name == "grad_logits" and letters == "RC"
    measured = name in ("iou", "probability") and output
    if of_mask_points or of_a_loss or measured or name == "weight":
        dtype = WIDER[dtype]
    elif name in ("points", "locations", "weights", "reference", "iou"):
        dtype = dtype if rng.random() < 0.5 else WIDER[dtype]
    if name in ("owner", "label", "index"):
        dtype = pick(rng, "int64", "int32")
        low, letter = {"owner": (0, "B"), "label": (-1, "C"), "index": (0, "G")}[name]
        fill = integers(low, min(sizes[letter], 2**31 - 1))
    elif name in ("runs", "counts"):
        dtype = "int32"
    elif name in ("area", "box", "ends"):
        dtype, fill = "int64", sums_up_to(sizes["R"])
    elif name in ("masks", "targets") and not output:
        dtype, fill = pick(rng, "bool", "uint8"), masks
    if max(shape, default=0) > 2**20:
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        return fuzz_junk.expanded(np.zeros([1] * len(shape), kind), shape)
    return Holder(rng, shape, dtype, None if output else lambda view: fill(rng, view))


def arguments(rng: Rng, function: str) -> tuple[dict[str, Any], list[Holder]]:
    """Arguments that fit together, apart from a few values out of range, and the holders of its
    tensors."""
    outputs, letters_of, others = FUNCTIONS[function]
    sizes, dtype = sizes_of(rng, function), pick(rng, *FLOATS)
    if function == "mask_iou_forward" and rng.random() < 0.4:
        factor = pick(rng, 2, 3, 4)
        sizes["H"], sizes["W"] = sizes["h"] * factor, sizes["w"] * factor
        letters_of = {**letters_of, "targets": "GHW"}
    levels = [(pick(rng, 0, 1, 2, 3, 7), pick(rng, 0, 1, 2, 5)) for _ in range(min(sizes["L"], 9))]
    if sizes["S"] < 2**20:
        sizes["S"] = sum(h * w for h, w in levels)
    elif levels:
        levels[0] = (sizes["S"], 1)
    sizes["E"] = min(sizes["N"] * sizes["D"], 2**62)
    if function.startswith("mask_rle") and rng.random() < 0.9:  # which takes no empty maps
        sizes |= {letter: max(sizes[letter], 1) for letter in "hwW"}
    given: dict[str, Any] = {}
    holders = []
    second_form = rng.random() < 0.5
    absent = [name for name in letters_of if "reference" in name and not second_form]
    absent += [
        name
        for name in letters_of
        if name.startswith(MAY_BE_ABSENT) and "grad_out" != name and rng.random() < 0.2
    ]
    for name, letters in letters_of.items():
        if (
            name in absent
            and not (name == "reference" and second_form)
            and "masked" not in function
        ):
            given[name] = None
            continue
        given[name] = tensor(rng, name, letters, sizes, name in outputs.split(), dtype)
        if isinstance(given[name], Holder):
            holders.append(given[name])
            given[name] = given[name].tensor
    for name in others.split():
        given[name] = {
            "threads": lambda: pick(rng, 1, 1, 2, 3, 0, -1, 2**31 - 1, -(2**31)),
            "threshold": lambda: pick(rng, 0.0, 0.5, -3, float("nan"), float("inf"), 1e300),
            "height": lambda: pick(rng, *(1, 2, 63, 64, 65, 200) * 4, 0, -1, 2**31 - 1),
            "width": lambda: min(sizes["W"], 2**31 - 1),
            "padded_height": lambda: pick(rng, *(40, 41, 80) * 4, 3, 2**31 - 1),
            "padded_width": lambda: pick(rng, *(50, 51, 90) * 4, 3, 2**31 - 1),
            "valid_height": lambda: pick(rng, *(40, 37, 3, 1) * 4, 0),
            "valid_width": lambda: pick(rng, *(50, 41, 3, 1) * 4, 0),
            "divide_by_points": lambda: pick(rng, True, False),
            "deterministic": lambda: pick(rng, True, False),
            "level_shapes": lambda: [size for level in levels for size in level],
            "gamma": lambda: pick(rng, 2.0, 1.0, 1.5, 3, 1e300),
            "theta": lambda: pick(rng, 0.5, 0.0, 0.9),
            "seed": lambda: pick(rng, 0, 7, -1, 2**63 - 1, -(2**63)),
            "candidates": lambda: pick(rng, 1, 9, 33, 1000),
            "kept": lambda: pick(rng, 0, 0, 0, 1, 1, 5),
            "name": lambda: pick(rng, *_core.cpu_instruction_sets()),
        }[name]()
    return given, holders


def spoil(rng: Rng, given: dict[str, Any], outputs: list[str]) -> None:
    """Replaces an argument by junk, by a spoilt form of itself, or by memory of another
    argument."""
    names = list(given)
    if not names or rng.random() < 0.02:
        given[pick(rng, "nonsense", "out", "threads")] = 1
        return
    name = pick(rng, *names)
    if rng.random() < 0.02:
        del given[name]
    elif rng.random() < 0.3:
        given[name] = fuzz_junk.junk(rng)
    elif isinstance(given[name], (np.ndarray, torch.Tensor)):
        if outputs and rng.random() < 0.3:
            other = given.get(pick(rng, *outputs))
            given[name] = (
                fuzz_junk.part_of(rng, other, given[name])
                if isinstance(other, np.ndarray)
                else other
            )
        else:
            given[name] = fuzz_junk.spoilt(rng, given[name])
    elif isinstance(given[name], list):
        given[name] = fuzz_junk.spoilt_list(rng, given[name])
    else:
        given[name] = pick(
            rng,
            *HUGE,
            *(-size for size in HUGE),
            0,
            -1,
            1.5,
            float("nan"),
            np.float32(1),
            np.int8(3),
        )


ALSO = {
    "locations": "offsets",
    "weights": "logits",
    "grad_locations": "grad_offsets",
    "height": "size",
    "padded_height": "padded",
    "valid_height": "valid",
    "grad_weights": "grad_logits",
}


def explains(error: BaseException, function: str, names: set[str]) -> bool:
    """Does the message name the op and an argument?"""
    message = str(error)
    if isinstance(error, MemoryError):
        return True
    # Too few, too many or unknown ones.
    if message.startswith(f"{function}(): incompatible function arguments"):
        return True
    op = re.sub("_(forward|counts_forward|backward|backward_workspace)$", "", function)
    head, _, rest = message.partition(": ")
    known = names | {ALSO[name] for name in names & set(ALSO)} | {"CPU code", "owner"}
    return head in (op, f"{op}_from_offsets") and any(
        re.search(rf"\b{name}\b", rest) for name in known
    )


def call(seed: int, n: int) -> str:
    """One call; returns how it ended. AssertionError: against the rules at the top."""
    rng = np.random.default_rng([seed, n])
    function = pick(rng, *FUNCTIONS)
    given, holders = arguments(rng, function)
    names, original, outputs = set(given), dict(given), FUNCTIONS[function][0].split()
    for _ in range(pick(rng, 0, 1, 1, 1, 2, 3)):
        spoil(rng, given, outputs)
    try:
        getattr(_core, function)(**given)
    except REFUSALS as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert explains(refused, function, names), f"{function} raised {refused!r}"
        # What is refused has not begun; memory may run out later.
        assert isinstance(refused, MemoryError) or all(
            holder.is_intact(False) for holder in holders
        ), f"{function} wrote"
        return type(refused).__name__
    # Else another part of a holder may be an output.
    if all(given.get(name) is original.get(name) for name in outputs):
        assert all(holder.is_intact(True) for holder in holders), (
            f"{function} wrote outside of its outputs"
        )
    return "returned"


def fuzz(calls: int, seed: int, first: int = 0) -> Counter[str]:
    """Ends of calls by kind. Raises what a call against the rules raises, with its number."""
    ends: Counter[str] = Counter()
    used = _core.cpu_instruction_set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's prototypes
            for n in range(first, first + calls):
                if n % 100 == 0:
                    faulthandler.dump_traceback_later(120, exit=True)
                try:
                    ends[call(seed, n)] += 1
                except BaseException as error:
                    error.add_note(
                        f"call {n} of seed {seed}: python -m tests.ops.fuzz_bindings --seed {seed} "
                        f"--only {n}"
                    )
                    raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        _core.select_cpu_instruction_set(used)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of the one call to make")
    given = parser.parse_args()
    fuzz_junk.limit_memory()
    first, calls = (0, given.calls) if given.only is None else (given.only, 1)
    ends = fuzz(calls, given.seed, first)
    print(
        f"{calls} calls of seed {given.seed}: "
        + ", ".join(f"{count} {end}" for end, count in ends.most_common())
    )


if __name__ == "__main__":
    main()
    sys.exit()
