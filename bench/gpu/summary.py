"""From what the programs found to one JSON file and one page of Markdown for people."""

from __future__ import annotations

import csv
import datetime
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MEASURED = {
    "ms_deform_attn float": ("ms_deform_attn_from_offsets float32 spread 2", "forward"),
    "ms_deform_attn backward float": ("ms_deform_attn_from_offsets float32 spread 2", "backward"),
    "ms_deform_attn Half": ("ms_deform_attn_from_offsets float16 spread 2", "forward"),
    "ms_deform_attn backward Half": ("ms_deform_attn_from_offsets float16 spread 2", "backward"),
    "masked_point_pool float": ("masked_point_pool float32 NHWC", "forward"),
    "masked_point_pool Half": ("masked_point_pool bfloat16 NHWC", "forward"),
    "mask_iou to 1024 x 1024 float": ("mask_iou float32 x4 smooth", "forward"),
    "mask_iou to 1024 x 1024 Half": ("mask_iou bfloat16 x4 smooth", "forward"),
    "mask_points float": ("mask_points float32", "forward"),
    "mask_points Half": ("mask_points bfloat16", "forward"),
    "mask_points backward float": ("mask_points float32", "backward"),
    "mask_points backward Half": ("mask_points bfloat16", "backward"),
    "quality_focal_loss float": ("quality_focal_loss float32", "forward+backward"),
    "quality_focal_loss Half": ("quality_focal_loss bfloat16", "forward+backward"),
}
"""Call of the counted model -> what was timed of it."""

COUNTERS = {
    "Duration": ("µs", 1e-3), "DRAM Throughput": ("DRAM %", 1), "L2 Cache Throughput": ("L2 %", 1),
    "L1/TEX Cache Throughput": ("L1 %", 1), "Compute (SM) Throughput": ("SM %", 1), "Issued Warp Per Scheduler": ("issued", 1),
    "L2 Hit Rate": ("L2 hits %", 1), "Achieved Occupancy": ("occupancy %", 1),
}  # fmt: skip
"""Counter of NVIDIA's profiler -> head of its column and factor."""


def of_output(text: str, status: str) -> dict[str, Any]:
    """What a section printed, as far as it is worth keeping: pytest's counts and failures, why it
    was skipped or failed."""
    found: dict[str, Any] = {}
    lines = text.strip().splitlines()
    if counts := re.findall(
        r"(\d+) (passed|failed|skipped|errors?|deselected)\b", lines[-1] if lines else ""
    ):
        found["tests"] = {what: int(count) for count, what in counts}
        found["failures"] = [
            line[:300] for line in lines if line.startswith(("FAILED ", "ERROR "))
        ][:60]
        reasons = [
            re.sub(r"^SKIPPED (\[\d+\]) \S+ ?", r"\1 ", line)[:300]
            for line in lines
            if line.startswith("SKIPPED ")
        ]
        found["skipped tests"] = list(dict.fromkeys(reasons))[:20]
    elif status in ("skipped", "not started"):
        found["why"] = lines[-1][:300] if lines else ""
    elif status != "passed":
        found["last lines"] = [line[:300] for line in lines[-4:]]
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell(value) for value in row)} |"


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "/")


# ---- the parts of the page


def facts(found: dict[str, Any]) -> Iterator[str]:
    about = found.get("facts", {})
    gpu = about.get("gpu", {})
    yield f"- GPU: {', '.join(f'{key} {value}' if key != 'name' else str(value) for key, value in gpu.items() if value)}"
    for key in (
        "system",
        "python",
        "torch",
        "nvcc",
        "packages",
        "tools",
        "commit",
        "changed files",
    ):
        value = about.get(key)
        if value:
            text = (
                ", ".join(f"{k} {v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            yield f"- {key}: {', '.join(text) if isinstance(text, list) else text}"
    for name in ("implementation", "copy of 1 GiB"):
        if name in found.get("bench", {}):
            yield f"- {name}: {plain(found['bench'][name])}"


def plain(value: Any) -> str:
    return (
        ", ".join(f"{key} {cell(item)}" for key, item in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def correctness(found: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, section in found["sections"].items():
        said = section.get("why") or " / ".join(section.get("last lines", ()))
        said = plain(section["tests"]) if "tests" in section else said
        rows.append((name, section["status"], section["seconds"], said))
    yield from table(("section", "result", "s", ""), rows)
    for name, section in found["sections"].items():
        for line in section.get("failures", ()):
            yield f"- {name}: `{line}`"
    smoke = found.get("smoke", {})
    if errors := smoke.get("largest errors"):
        yield ""
        yield f"Every op and gradient against float64: {smoke.get('faults')} faults. Largest errors, of the largest element:"
        yield ""
        dtypes = ("float64", "float32", "float16", "bfloat16")
        names = dict.fromkeys(name.split()[0] for name in errors)
        rows = [
            (op, *(f"{errors.get(f'{op} {dtype}', 0.0):.1e}" for dtype in dtypes)) for op in names
        ]
        yield from table(("op", *dtypes), rows)


def expected(found: dict[str, Any]) -> Iterator[str]:
    """Bandwidth and clocks: those of bench/roofline.py for the GPU's kind, else what is measured
    and what the driver says."""
    gpu, calls = found.get("facts", {}).get("gpu", {}), found.get("expected", {}).get("calls", {})
    if not calls:
        yield f"Left out: {found['sections'].get('expected', {}).get('why', 'nothing was counted')}."
        return
    import roofline

    known = [kind for kind in roofline.GPUS if kind.name in gpu.get("name", "")]
    if known:
        bandwidth, issues = max(known[0].bandwidth), known[0].issues()
        source = f"{bandwidth} GB/s and {known[0].clock} GHz on {known[0].multiprocessors} multiprocessors"
    elif gpu.get("clock MHz") and "GB/s" in found.get("bench", {}).get("copy of 1 GiB", {}):
        bandwidth = found["bench"]["copy of 1 GiB"]["GB/s"]
        issues = gpu["multiprocessors"] * 4 * float(gpu["clock MHz"]) * 1e6
        source = f"a copy's {bandwidth:.0f} GB/s and {gpu['clock MHz']} MHz on {gpu['multiprocessors']} multiprocessors"
    else:
        yield "Left out: neither bandwidth nor clock of this GPU is known."
        return
    yield f"Floors by {source}; measured on the device alone (CUDA graph)."
    yield ""
    rows = []
    for name, call in calls.items():
        if "failed" in call:
            rows.append((name, None, None, None, call["failed"], None))
            continue
        memory, issue = call["bytes"] / bandwidth / 1e6, 1e3 * call["instructions"] / issues
        floor = max(memory, issue)
        label, pass_ = MEASURED.get(name, ("", ""))
        ms = found.get("bench", {}).get(label, {}).get(pass_, {}).get("graph ms")
        rows.append((name, memory, issue, floor, ms, ms / floor if ms else None))
    yield from table(
        ("call", "memory ms", "instructions ms", "expected at least ms", "measured ms", "ratio"),
        rows,
    )


def ops(found: dict[str, Any], section: str) -> Iterator[str]:
    """Device alone / in a loop / host, for each pass; what failed with its reason."""
    passes = ("forward", "backward", "forward+backward")
    rows = []
    for name, times in found.get(section, {}).items():
        if not isinstance(times, dict) or not ("failed" in times or "forward" in times):
            continue
        if "failed" in times:
            rows.append((name, times["failed"], *[None] * 6))
            continue
        graphs = [times.get(p, {}).get("graph ms") for p in passes]
        loops = [times.get(p, {}).get("loop ms") for p in passes[::2]]
        hosts = [times.get(p, {}).get("host us") for p in passes[::2]]
        more = " ".join(
            f"{key} {times[key]:.2g}" for key in ("peak MiB", "relative error") if key in times
        )
        rows.append((name, *graphs, *loops, *hosts, more))
    head = (
        "",
        "forward ms",
        "backward ms",
        "both ms",
        "loop: forward",
        "both",
        "host µs: forward",
        "both",
        "",
    )
    yield "On the device alone (CUDA graph); per call in a loop; and the host's part of a call."
    yield ""
    yield from table(head, rows)


def models(found: dict[str, Any]) -> Iterator[str]:
    rows, other = [], []
    for section in ("hf", "compiled", "step"):
        for name, sides in found.get(section, {}).items():
            values = list(sides.values()) if isinstance(sides, dict) else []
            if values and all(isinstance(side, dict) and "wall ms" in side for side in values):
                for side, t in sides.items():
                    spread = f"{t['wall ms least']:.1f} to {t['wall ms most']:.1f}"
                    rows.append(
                        (name, side, t["wall ms"], spread, t.get("kernels ms"), t["peak GiB"])
                    )
            else:
                other.append(f"- {name}: {plain(sides)}")
    yield from table(("", "", "wall ms", "from, to", "kernels alone ms", "peak GiB"), rows)
    if other:
        yield ""
        yield from other


def counters(folder: Path) -> Iterator[str]:
    path = folder / "ncu.csv"
    kernels: dict[str, dict[str, Any]] = {}
    if path.exists():
        lines = [
            line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')
        ]
        for row in csv.DictReader(lines):
            if row["Metric Name"] in COUNTERS and row["Metric Unit"] != "byte/s":
                head, factor = COUNTERS[row["Metric Name"]]
                name = re.sub(r"^void |\(.*", "", row["Kernel Name"])
                number = float(row["Metric Value"].replace(",", ""))
                kernels.setdefault(f"{row['ID']} {name}", {})[head] = factor * number
    heads = [head for head, _ in COUNTERS.values()]
    yield from table(
        ("kernel", *heads),
        ((name, *(k.get(head) for head in heads)) for name, k in kernels.items()),
    )


def page(found: dict[str, Any], folder: Path) -> Iterator[str]:
    yield f"# {found['name']}, {found['date'][:10]}"
    yield ""
    yield "Written by `make gpu-report` (bench/gpu); all numbers are in the JSON file beside this page."
    parts = {
        "What ran where": facts(found), "Correctness": correctness(found), "Counted model and measured": expected(found),
        "Ops": ops(found, "bench"), "Peers of ms_deform_attn": ops(found, "peers"), "Whole models": models(found),
        "Counters of NVIDIA's profiler": counters(folder),
    }  # fmt: skip
    for title, lines in parts.items():
        yield ""
        yield f"## {title}"
        yield ""
        try:
            yield from lines
        except (
            Exception
        ) as error:  # numbers of a part that was cut short; the JSON file has what there is
            yield f"This part cannot be shown: {type(error).__name__}: {error}."


def write(folder: Path, sections: dict[str, Any], into: Iterable[Path]) -> list[Path]:
    """`<gpu>-<date>.json` and `.md` of what is in `folder`, into every folder of `into`; empty
    before the facts are known."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    }
    for path in sorted(folder.glob("*.json")):
        found[path.stem] = json.loads(path.read_text())
    found["name"] = found.get("facts", {}).get("gpu", {}).get("name", "")
    found["sections"] = sections
    if not found["name"]:
        return []
    stem = re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-") + f"-{found['date'][:10]}"
    text = "\n".join(page(found, folder)) + "\n"
    written = []
    for place in into:
        (place / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
        (place / f"{stem}.md").write_text(text)
        written += [place / f"{stem}.json", place / f"{stem}.md"]
    return written
