"""Damaged results files without end: do an evaluation, a calibration and an analysis agree on each
of them, and does none of them crash?

    python -m tests.evaluation.fuzz_results --files 20000 --seed 0

Every file is a valid one with a few changes: within its entries as tests.data.fuzz_coco makes them,
or of its text, such as one that is cut off, of another encoding, or nested without end. Ends with
status 1 and the file if a reader raises anything but CocoError, needs more than ten seconds or two
gigabytes, says otherwise than the others, or does not say which file and entry it is about.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

import alignmask
from alignmask import _verbs
from alignmask.analysis.compare import analysis_table
from alignmask.data import CocoError
from tests.data import fuzz_coco

LONGEST = 4000
"""Characters of a message, however large the file is."""
NUMBERS = (
    "9" * 5000, "-" + "1" * 309, "1e999", "-1e-999", "NaN", "-Infinity", "0x10", "1_0", "01", "1.", "+1", "--1",
)  # fmt: skip
NEEDS = ("calibration: there is no prediction", "calibration: scores must lie in 0..1")
"""What calibration alone asks for, of files without a fault."""


def valid() -> list[dict[str, Any]]:
    """Every form of a mask, images by number and by name, a second mask of one object."""
    annotations = fuzz_coco.valid()["annotations"]
    entries = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "segmentation": annotation["segmentation"],
            "score": round(0.9 - 0.1 * number, 1),
        }
        for number, annotation in enumerate(annotations)
    ]
    entries.append({**entries[0], "score": 0.05, "bbox": [2, 2, 6, 6]})
    entries[1]["file_name"] = "1.png"
    entries[2]["file_name"] = "photos/2.png"
    return entries


def damaged(chance: random.Random) -> bytes:
    """The bytes of a file."""
    content = {"entries": valid(), "annotations": []}
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        fuzz_coco.damage(content, chance)
    entries = content.get("entries", {"annotations": valid()})
    text = json.dumps(entries, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.75:
        return text.encode("utf-8", errors="surrogatepass")
    return damaged_text(text, chance)


def damaged_text(text: str, chance: random.Random) -> bytes:
    def encoded(text: str, encoding: str = "utf-8") -> bytes:
        return text.encode(encoding, errors="surrogatepass")

    data = encoded(text)
    place = chance.randrange(len(data) + 1)
    what = chance.randrange(8)
    if what == 0:
        return data[: len(data) * chance.randrange(100) // 100]
    if what == 1:
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if what == 2:
        spans = [found.span() for found in re.finditer(r"-?\d+(\.\d+)?", text)] or [(0, 0)]
        begin, end = chance.choice(spans)
        return encoded(text[:begin] + chance.choice(NUMBERS) + text[end:])
    if what == 3:
        return encoded(text, chance.choice(("utf-16", "utf-32-be", "utf-8-sig")))
    if what == 4:
        junk = (b"\xff", b"\0", b"\xc3", b"\xed\xa0\x80", b"\\u12", b"//", b",")
        return data[:place] + chance.choice(junk) + data[place:]
    if what == 5:
        return chance.choice((b"[", b'{"a":', b"[{}, ")) * chance.choice((10, 900, 99_999)) + data
    if what == 6:
        return data + chance.choice((b"x", b"]", b"[", b"\0", data))
    twice = chance.choice(("image_id", "score", "category_id"))
    return encoded(text.replace('"score"', f'"{twice}": 1, "score"'))


def verdicts(path: Path, annotations: Path, ignore_unknown: bool) -> dict[str, str | None]:
    """Who says what: None for a file that is accepted, else the message."""

    def said(reader: Callable[[], Any]) -> str | None:
        try:
            with redirect_stdout(io.StringIO()):
                reader()
        except CocoError as error:
            return str(error)
        return None

    def shown(table: Any) -> None:
        Console(file=io.StringIO(), width=120).print(table)

    def evaluated() -> None:
        found = alignmask.evaluate(
            path, annotations=annotations, ignore_unknown=ignore_unknown, errors=True
        )
        shown(found.table())

    def calibrated() -> None:
        try:
            found = alignmask.calibrate(
                path, annotations=annotations, ignore_unknown=ignore_unknown, resamples=0
            )
        except CocoError:
            raise
        except ValueError as error:
            if not str(error).startswith(NEEDS):
                raise
        else:
            shown(found.table())

    def analyzed() -> None:
        alignmask.analyze(
            [path], annotations=annotations, out=path.parent / "analysis", ignore_unknown=ignore_unknown,
            measured=lambda found: shown(analysis_table(found)),
        )  # fmt: skip

    readers = {"evaluation": evaluated, "calibration": calibrated, "analysis": analyzed}
    return {name: said(reader) for name, reader in readers.items()}


def disagreement(said: dict[str, str | None], path: Path) -> str | None:
    """What is wrong with the verdicts, None if they are one and name file and entry."""
    if len(set(said.values())) > 1:
        return "the readers disagree"
    message = next(iter(said.values()))
    if message is None:
        return None
    if not message.startswith(f"{path}: "):
        return "the message does not name the file"
    if " entries: " in message and not re.search(r"entry \d", message):
        return "the message does not name an entry"
    return "the message is too long" if len(message) > LONGEST else None


def run(files: int, seed: int, pages: int) -> int:
    """pages: Every so many files, the analysis writes its page, too; that takes a second."""
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        annotations, path = Path(folder, "annotations.json"), Path(folder, "damaged.json")
        annotations.write_text(json.dumps(fuzz_coco.valid()))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + fuzz_coco.GIBIBYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        written = _verbs.write_analysis
        for number in range(files):
            chance = random.Random(f"{seed} {number}")
            path.write_bytes(damaged(chance))
            write = written if number % pages == 0 else lambda *_, **__: {}
            signal.alarm(fuzz_coco.SECONDS)
            try:
                with patch.object(_verbs, "write_analysis", write):
                    said = verdicts(path, annotations, ignore_unknown=chance.random() < 0.3)
                wrong = disagreement(said, path)
            except Exception as error:
                said, wrong = {}, f"{type(error).__name__}: {error}"
            signal.alarm(0)
            if wrong:
                print(f"file {number} of seed {seed}: {wrong}\n{said}")
                print(path.read_bytes()[:5000])
                return 1
            outcomes["refused" if said["evaluation"] else "accepted"] += 1
    print(f"{files} files, none with a crash or a disagreement: {dict(outcomes)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pages", type=int, default=500)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    return run(options.files, options.seed, options.pages)


if __name__ == "__main__":
    sys.exit(main())
