"""Damaged checkpoints without end: is a checkpoint of which any file is wrong read, or refused with
the documented error, without code that is run or memory that it does not need?

    python -m tests.safe_load.fuzz_checkpoints --files 2000 --seed 0

As tests.safe_load.fuzz_files, of the whole folder: settings, classes, checksums, a calibration, the
optimizer's state, weights. Both what `alignmask.load` reads is read and what a resumed training
does.
"""

from __future__ import annotations

import argparse
import codecs
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import alignmask
from alignmask import checkpoint
from alignmask.config import Config
from tests import tiny
from tests.data import fuzz_coco
from tests.evaluation import fuzz_results
from tests.safe_load import damage
from tests.safe_load.fuzz_files import ended, run, verdict

MEBIBYTES = 512
JSON = (checkpoint.CONFIG, checkpoint.META, checkpoint.CHECKSUMS, checkpoint.CALIBRATION)
LARGE = (2**31, 10**12, 10**30, 1e300, 100_000, 0, -1)


def write_valid(folder: Path) -> None:
    model = tiny.model(num_classes=2)
    small = Config("small", model=model.config)
    meta = {"step": 3, "train_seconds": 1.5, "class_names": ["a", "b"], "category_ids": [1, 2]}
    optimizer = torch.optim.AdamW(model.query_decoder.heads.parameters())
    checkpoint.save(folder, small, model.state_dict(), meta, state={"optimizer": optimizer.state_dict()})  # fmt: skip
    truth = fuzz_coco.valid()
    (folder / "truth.json").write_text(json.dumps(truth))
    entries = [{**entry, "score": 0.5} for entry in fuzz_results.valid()]
    alignmask.calibrate(
        entries, annotations=folder / "truth.json", out=folder / checkpoint.CALIBRATION, resamples=0
    )


def damaged(valid: Path, folder: Path, chance: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    name = chance.choice((*JSON, *JSON, checkpoint.MODEL, checkpoint.STATE))
    path = folder / name
    if name in JSON:
        content = {"": json.loads(path.read_text())}
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            if chance.random() < 0.3:
                enlarge(content, chance)
            else:
                fuzz_coco.damage(content, chance)
        text = json.dumps(content.get("", []))
        plain = chance.random() < 0.7
        data = text.encode(errors="surrogatepass")
        path.write_bytes(data if plain else fuzz_results.damaged_text(text, chance))
    else:
        path.write_bytes(damage.damaged(name, {name: path.read_bytes()}, chance))
        if chance.random() < 0.7:
            (folder / checkpoint.CHECKSUMS).unlink()
    if chance.random() < 0.05:
        (folder / chance.choice((*JSON, checkpoint.MODEL, checkpoint.STATE))).unlink(missing_ok=True)  # fmt: skip


def enlarge(content: Any, chance: random.Random) -> None:
    """A number somewhere becomes one that no model can have."""
    numbers: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            if isinstance(value[key], (dict, list)):
                collect(value[key])
            elif type(value[key]) in (int, float):
                numbers.append((value, key))

    collect(content)
    if numbers:
        holder, key = chance.choice(numbers)
        holder[key] = chance.choice(LARGE)


def read(folder: Path) -> None:
    """What a resumed training reads comes first, or `load` would refuse it before."""
    refused: Exception | None = None
    for reader in (checkpoint.check, checkpoint.load_state, alignmask.load):
        try:
            reader(folder)
        except (ValueError, FileNotFoundError) as error:
            if str(folder) not in str(error):
                raise
            refused = error
    if refused is not None:
        raise refused


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="copy the checkpoint that is wrong to this folder"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, valid = Path(name), Path(name, "valid")
        write_valid(valid)
        for codec in ("cp437", "raw-unicode-escape", "utf-16", "utf-32-be", "utf-8-sig", "latin-1"):
            codecs.lookup(codec)
        read(valid)

        def one(number: int) -> tuple[Path, str]:
            place = folder / "damaged"
            damaged(valid, place, random.Random(f"{options.seed} {number}"))
            return place, verdict(place, read, (ValueError, FileNotFoundError))

        outcomes = run(one, options.files, folder, MEBIBYTES)
        return ended("checkpoints", outcomes, folder, options.keep)


if __name__ == "__main__":
    sys.exit(main())
