"""A short run of the fuzzer of files with tensors, and what its long runs have found;
`python -m tests.safe_load.fuzz_files` is the long one."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignmask.safe_load import CheckpointError, read_json, read_pickled, read_tensors
from tests.conftest import REPOSITORY
from tests.safe_load import damage, fuzz_files


def test_damaged_files_execute_nothing_and_take_no_memory() -> None:
    command = [sys.executable, "-m", "tests.safe_load.fuzz_files", "--files", "600", "--seed", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 files, none executed and none with a crash" in done.stdout


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (lambda path: pickle.loads(path.read_bytes()), "Executed: import|Executed: pickle"),
        (lambda _: os.system("true"), r"Executed: os\.system"),
        (lambda path: path.write_bytes(b"x"), "Executed: open"),
        (lambda _: bytes(2**40), "MemoryError"),
        (lambda _: os.kill(os.getpid(), 9), "wait status 9 at file 0"),
        (lambda _: [][0], "IndexError"),
    ],
)
def test_the_fuzzer_sees_what_no_reader_may_do(
    reader: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02" + damage.call("os", "system", "true") + b".")
    assert (
        fuzz_files.run(
            lambda _: (path, fuzz_files.verdict(path, reader, (CheckpointError,))), 3, tmp_path, 96
        )
        is None
    )
    said = capsys.readouterr().out
    assert re.search(words, said), said


def test_undamaged_files_are_accepted(tmp_path: Path) -> None:
    for name, content in damage.valid().items():
        (tmp_path / name).write_bytes(content)
        assert (
            read_pickled(tmp_path / name) if name == "state.pt" else read_tensors(tmp_path / name)
        )
    chance = random.Random(0)
    assert damage.damaged("zip.pth", damage.valid(), chance) != damage.valid()["zip.pth"]


F4 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
NESTED = b"N" + b"\x85" + b"q\x00h\x00\x86" * 60
"""A tuple of twice the same tuple, and so on 60 times: few bytes, and 2 ** 60 values to walk."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"}" + NESTED + b"Ns.", r"refused: \(.* as a key"),
        (b"\x8f(" + NESTED + b"\x90.", r"refused: \(.* as a key"),
        (b"cnumpy.core.numeric\n_frombuffer\n(B\x00\x00\x00\x00" + F4 + NESTED + b"NtR.", "is no shape"),
        (b"cnumpy\ndtype\n" + NESTED + b"\x85R.", "arrays of dtype"),
        (NESTED + NESTED + b"\x93.", "str expected, got tuple"),
        (b"]}" + b"\x8a\xff" + b"\x7f" * 255 + b"Nse.", "refused: <2039 bits> as a key"),
    ],
)  # fmt: skip
def test_messages_and_keys_do_not_walk_values_without_end(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + content)
    with pytest.raises(CheckpointError, match=words) as refused:
        read_pickled(path)
    assert len(str(refused.value)) < 2000


def test_entries_that_are_no_tensors_are_named_briefly(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({10**12: 1, "a": 2, ("b", 3): None}))
    with pytest.raises(
        CheckpointError, match=r"1000000000000 \(int\), a \(int\), \('b', 3\) \(None"
    ):
        read_tensors(path)


def test_zip_entries_have_one_length(tmp_path: Path) -> None:
    """zipfile would allocate the length that the archive's directory declares."""
    content = bytearray(damage.valid()["zip.pth"])
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 24] = struct.pack("<I", 2**32 - 2)
    path = tmp_path / "x.pth"
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"x\.pth: damaged: an entry declares two lengths"):
        read_tensors(path)


def test_shapes_that_torch_cannot_have_are_refused(tmp_path: Path) -> None:
    """Of nothing, so that the file is as long as it says."""
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"no whole safetensors file: .*") as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value)


def test_json_with_endless_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(CheckpointError, match=r"x\.json: no JSON: Exceeds the limit"):
        read_json(tmp_path / "x.json")
