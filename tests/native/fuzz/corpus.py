"""The corpus of the core's fuzzer as one file: two bytes of length, then so many bytes, for each
call.

    python tests/native/fuzz/corpus.py pack FOLDER
    python tests/native/fuzz/corpus.py unpack FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_name("corpus.bin")


def pack(folder: Path) -> None:
    entries = sorted(path.read_bytes() for path in folder.iterdir())
    FILE.write_bytes(b"".join(len(entry).to_bytes(2, "little") + entry for entry in entries))
    print(f"{FILE}: {len(entries)} calls, {FILE.stat().st_size} bytes")


def calls() -> Iterator[bytes]:
    data = FILE.read_bytes()
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : end]
        at = end


def unpack(folder: Path) -> None:
    """Under the names that libFuzzer gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in calls():
        (folder / hashlib.sha1(entry).hexdigest()).write_bytes(entry)


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]))
