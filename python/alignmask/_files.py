"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any


def must_be_new(path: Path, command: str = "") -> None:
    """Raises FileExistsError, after the command's name, if there is something at `path`."""
    if path.exists():
        prefix = f"{command}: " if command else ""
        raise FileExistsError(f"{prefix}{path} exists already: nothing is overwritten")


def must_be_ours(folder: Path, proof: str, keys: Collection[str], names: Iterable[str]) -> None:
    """Raises FileExistsError if there is one of these files in the folder, and no JSON file `proof`
    beside it with the keys that show which command wrote them."""
    present = [name for name in names if (folder / name).exists()]
    if not present:
        return
    try:
        content = json.loads((folder / proof).read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise FileExistsError(
            f"{folder / present[0]}: it exists, and {folder / proof} does not show that this command "
            "wrote it, so it is not overwritten; name another folder"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, of the same suffix, to write to; it takes the place of
    `path` when the block ends.

    A reader sees the old file or the whole new one, also when several processes write or one is
    killed. After an error in the block, `path` is what it was. Makes the folder, and after an error
    removes it.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=f".part{path.suffix}"
    )
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        with contextlib.suppress(OSError):  # something else may be in them by now
            for folder in made:
                folder.rmdir()
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to write to; it becomes `path`, which must not exist, when the
    block ends, and is removed after an error in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield part
        part.chmod(0o755)
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 in hexadecimal digits: of a file's content; of a folder, of the names, sizes and
    contents of all files in it."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() and file != path:
            continue
        if file != path:
            digest.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file that has one JSON value a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes a JSON file by `replacing`. NaN is refused."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, allow_nan=False)
