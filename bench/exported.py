"""A recipe's model (random weights) exported: seconds to write, size, and one image by model,
program and onnxruntime in turns.

`python bench/exported.py r50_50ep --size 800 1216`. With `--turns 0` nothing is timed but the
exports, and "all" is all recipes, a row of docs/export.md each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from harness import Result, Row, environment, line, quartiles, write

from alignmask.config_files import without_pretrained
from alignmask.exporting.export import Form, export_model
from alignmask.exporting.files import SUFFIX, open_file
from alignmask.exporting.parity import agreement
from alignmask.exporting.segmenter import Segmenter
from alignmask.model import build_model
from alignmask.recipes import RECIPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=[*RECIPES, "all"])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seen: dict[str, str] = {}
    for recipe in RECIPES if options.recipe == "all" else [options.recipe]:
        same = seen.setdefault(str(RECIPES[recipe]().model), recipe)
        if same == recipe:
            measure(recipe, options)
        else:
            print(f"{recipe}: the model of {same}")


def measure(recipe: str, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    about = environment()
    segmenter = Segmenter(build_model(without_pretrained(RECIPES[recipe]()).model).eval())
    size = torch.tensor([options.size])
    image = torch.randint(0, 256, (1, 3, *options.size)).to(torch.uint8)
    candidates = {"model": segmenter.forward}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cells = [recipe]
        for format, suffix in SUFFIX.items():
            file = Path(folder) / f"model{suffix}"
            began, cpu = time.perf_counter(), time.process_time()
            export_model(segmenter.model, file, Form(format))
            cells += [
                f"{time.process_time() - cpu:.0f} s",
                f"{time.perf_counter() - began:.0f} s",
                f"{file.stat().st_size / 1e6:.0f} MB",
            ]
            candidates[{"torch": "program", "onnx": "onnxruntime"}[format]] = open_file(file)
        print(f"| {' | '.join(cells)} |", flush=True)
        if not options.turns:
            return
        expected = segmenter(image, size)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for turn in range(options.turns + 1):  # the first one warms up
            for name, run in candidates.items():
                began = time.perf_counter()
                found = run(image, size)
                if turn:
                    times[name].append(time.perf_counter() - began)
                else:
                    print(
                        f"{name}: {agreement(found, expected):.1%} of {expected[0].shape[1]} "
                        "detections as the model's"
                    )
    results = [Result(name, options.turns, *quartiles(seconds)) for name, seconds in times.items()]
    height, width = options.size
    labels = {"recipe": recipe, "image": f"{height}x{width}"}
    row = Row("export", labels, options.threads, {"B": 1, "H": height, "W": width}, {}, results)
    print(line(row))
    print(f"written to {write(about, [row])}")


if __name__ == "__main__":
    main()
