"""A short run of the fuzzer of checkpoints, and what its long runs have found;
`python -m tests.safe_load.fuzz_checkpoints` is the long one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import alignmask
from alignmask import checkpoint
from tests.conftest import run_apart
from tests.safe_load import fuzz_checkpoints


@pytest.mark.slow
def test_damaged_checkpoints_are_read_or_refused() -> None:
    run_apart([sys.executable, "-m", "tests.safe_load.fuzz_checkpoints", "--files", "60"], 300)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid") / "checkpoint"
    fuzz_checkpoints.write_valid(folder)
    fuzz_checkpoints.read(folder)
    return folder


def changed(valid: Path, file: str, change: Any, folder: Path) -> Path:
    """A copy of the checkpoint with another text, or with a value elsewhere: (keys, value)."""
    copy = folder / "copy"
    copy.mkdir()
    for path in valid.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    if isinstance(change, str):
        (copy / file).write_text(change)
        return copy
    content = json.loads((copy / file).read_text())
    (*way, last), value = change
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = value
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", "[" * 100_000, "is not JSON: maximum recursion"),
        ("config.json", "[1]", "expected a JSON object"),
        ("meta.json", "5", "expected a JSON object"),
        ("checksums.json", '"x"', "is damaged"),
        ("config.json", (["out"], 5), "Path|str"),
        ("config.json", (["model", "query_decoder", "queries"], -1), "there is no such model"),
        ("config.json", (["model", "query_decoder", "heads"], 2**31), "there is no such model"),
        ("config.json", (["model", "query_decoder", "layers"], 10**12), "no such model: 1000000000000 layers, and"),
        ("config.json", (["model", "query_decoder", "ffn_width"], 10**11), "does not fit its own"),
        ("config.json", (["model", "backbone", "name"], "nothing"), "no model of this name"),
        ("calibration.json", "[" * 100_000, "cannot be read"),
    ],
)  # fmt: skip
def test_what_no_checkpoint_has_is_refused(
    file: str, change: Any, words: str, valid: Path, tmp_path: Path
) -> None:
    copy = changed(valid, file, change, tmp_path)
    read = checkpoint.check if file == checkpoint.CHECKSUMS else alignmask.load
    with pytest.raises(ValueError, match=words) as refused:
        read(copy)
    assert str(copy) in str(refused.value)
