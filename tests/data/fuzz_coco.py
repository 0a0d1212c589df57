"""Damaged COCO files without end: do a check, the start of a training and an evaluation agree on
each of them, and does none of them crash?

    python -m tests.data.fuzz_coco --files 20000 --seed 0

Every file is a valid one with a few changes: keys that are missing, values of other types, huge,
negative or not finite, records twice, references to nothing, damaged masks, names that lead
elsewhere. Ends with status 1 and the file if a reader raises anything but CocoError, needs more
than ten seconds or two gigabytes, or says otherwise than the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignmask.curation.check import check
from alignmask.data import CocoError
from alignmask.data.dataset import CocoDataset
from alignmask.evaluation.results_file import load_ground_truth
from tests.data.coco_files import annotation, box_polygon, image_record, rle

SECONDS, GIBIBYTES = 10, 2
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, math.nan, math.inf, 2**31, 2**63, 10**400,
    "", "0", "1", "x", "\0", "../1.png", "/etc/passwd", "1.png", "\ud800", "🦠", [], {}, [[]], [None], [[0, 0]],
    [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], [[0, 0, 1e9, 0, 1e9, 1e9]], [[math.nan] * 6], {"size": [20, 30]},
    {"size": [20, 30], "counts": "0"}, {"size": [20, 30], "counts": [600]}, {"size": [20, 30], "counts": [-1, 601]},
    {"size": [2**31, 2**31], "counts": [2**62]}, {"size": [20, 30], "counts": [2**32, 600]}, [1] * 999,
)  # fmt: skip
"""What a value is replaced by."""


def valid() -> dict[str, Any]:
    """Every form of a mask, a crowd, several images and classes."""
    mask = np.zeros((20, 30), bool)
    mask[4:9, 5:20] = True
    hole = mask.copy()
    hole[5:7, 8:10] = False
    uncompressed = {"size": [20, 30], "counts": [0, 45, 555]}
    return {
        "info": {"year": 2026},
        "images": [image_record(1), image_record(2), image_record(3)],
        "annotations": [
            annotation(1, 1, 1),
            annotation(2, 1, 2, box_polygon(1, 1, 4, 4) + box_polygon(8, 8, 12, 15), area=30.5),
            annotation(3, 2, 2, rle(hole), bbox=[5, 4, 15, 5], iscrowd=0),
            annotation(4, 2, 1, uncompressed, iscrowd=1, area=45),
            annotation(5, 3, 1, rle(mask), area=75),
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "supercategory": "c"}],
    }


def damaged(chance: random.Random) -> dict[str, Any]:
    content = valid()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage(content, chance)
    return content


def damage(content: Any, chance: random.Random) -> None:
    """Change one thing somewhere within lists and dictionaries."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                collect(value[key])

    collect(content)
    if not places:  # everything is gone already
        return
    holder, key = chance.choice(places)
    what = chance.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif what == 2 and isinstance(holder[key], str) and holder[key]:
        text = list(holder[key])
        text[chance.randrange(len(text))] = chr(chance.choice((*range(33, 127), 0, 255, 0x2028)))
        holder[key] = "".join(text)
    elif what == 3 and type(holder[key]) in (int, float):
        holder[key] = holder[key] * chance.choice((-1, 0.5, 2, 1e3, 1e-3)) + chance.choice((0, 1))
    elif what == 4:
        other, position = chance.choice(places)
        swapped = copy.deepcopy(other[position]) if _has(other, position) else None
        holder[key] = swapped
    else:
        holder[key] = copy.deepcopy(chance.choice(STRANGE))


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def verdicts(path: Path, images: Path) -> dict[str, str | None]:
    """Who says what: None for a file that is accepted, else the message."""

    def said(reader: Callable[[], Any]) -> str | None:
        try:
            return reader()
        except CocoError as error:
            return str(error)

    def checked() -> str | None:
        report = check(path, images)
        return "\n".join([report.faults.summary(), *report.faults.lines(1000)]) or None

    def started() -> None:
        CocoDataset(images, path).require_instances()

    return {
        "check": said(checked),
        "training": said(started),
        "evaluation": said(lambda: load_ground_truth(path) and None),
    }


def disagreement(said: dict[str, str | None]) -> str | None:
    """What is wrong with the verdicts, None if they fit each other. An evaluation of results needs
    neither image files nor an instance."""
    if (said["check"] is None) != (said["training"] is None):
        return "check and training disagree"
    if said["evaluation"] is not None and said["check"] is None:
        return "evaluation alone refuses it"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        images, path = Path(folder, "images"), Path(folder, "damaged.json")
        images.mkdir()
        for number in (1, 2, 3):
            pixels = np.full((20, 30, 3), 50 * number, np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.png")
        Image.fromarray(pixels).save(Path(folder, "1.png"))  # no reader may take this one
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + GIBIBYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(options.files):
            content = damaged(random.Random(f"{options.seed} {number}"))
            path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
            signal.alarm(SECONDS)
            try:
                said = verdicts(path, images)
                wrong = disagreement(said)
            except Exception as error:
                said, wrong = {}, f"{type(error).__name__}: {error}"
            signal.alarm(0)
            if wrong:
                print(f"file {number} of seed {options.seed}: {wrong}\n{said}\n{path.read_text()}")
                return 1
            outcomes["accepted" if said["check"] is None else "refused"] += 1
    print(f"{outcomes.total()} files, none with a crash or a disagreement: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
