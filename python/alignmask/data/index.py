"""Large annotation files, kept in the checked form: COCO's own takes half a minute to read and
check, and seconds from here. Of several processes on a machine, one reads the file and the others
wait.

The folder is `$ALIGNMASK_CACHE/annotations`, else `$XDG_CACHE_HOME/alignmask/annotations`, else
`~/.cache/alignmask/annotations`. An index is named after the hash of the file and of the rules by
which it was read. It may be deleted at any time; a damaged one is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignmask._files import replacing, sha256
from alignmask.data.records import AnnotationRecord, CocoFile, ImageRecord

LARGE = 2**25
"""Bytes of an annotation file that is kept."""


def is_worthwhile(path: Path) -> bool:
    """Whether it is a large file."""
    return path.is_file() and path.stat().st_size >= LARGE


def folder() -> Path:
    """Where indices are."""
    if chosen := os.environ.get("ALIGNMASK_CACHE"):
        return Path(chosen) / "annotations"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "alignmask" / "annotations"


def kept(path: Path, read: Callable[[], CocoFile]) -> CocoFile:
    """The index of the file at `path`, or what `read` returns of it, which is kept. Raises what
    `read` raises; warns if nothing can be kept."""
    index = folder() / f"{sha256(path)[:32]}-{_rules()[:16]}.npz"
    if (found := _load(index, path)) is not None:
        return found
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        lock = index.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # it goes with the file, and with a process that is killed
    except OSError as error:
        _warn(path, index, error)
        return read()
    with lock:
        if index.exists():  # another process has made it; all load it at the same time
            fcntl.flock(lock, fcntl.LOCK_SH)
            if (found := _load(index, path)) is not None:
                return found
            fcntl.flock(lock, fcntl.LOCK_EX)
        file = read()
        if (arrays := _arrays(file)) is not None:
            try:
                with replacing(index) as part:
                    np.savez(part, **arrays)  # type: ignore[arg-type]
            except OSError as error:
                _warn(path, index, error)
        return file


def _warn(path: Path, index: Path, error: OSError) -> None:
    warnings.warn(
        f"{path}: it will be read and checked again the next time, because what it has cannot be "
        f"kept in {index.parent} ({error.strerror}); set ALIGNMASK_CACHE to another folder",
        stacklevel=3,
    )


def _rules() -> str:
    """A hash of the code that reads annotation files."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _arrays(file: CocoFile) -> dict[str, np.ndarray[Any, Any]] | None:
    """None if an id does not fit into 64 bits."""
    names = [_bytes(image.file_name) for image in file.images.values()]
    images = [(image.id, image.height, image.width) for image in file.images.values()]
    numbers = [(a.id, a.image_id, a.category_id, a.pixels, a.crowd) for a in file.annotations]
    rest = {
        "categories": list(file.categories.items()),
        "listed": file.listed,
        "without_polygon": file.without_polygon,
        "short_polygons": file.short_polygons,
    }
    try:
        return {
            "images": np.array(images, np.int64).reshape(-1, 3),
            "annotations": np.array(numbers, np.int64).reshape(-1, 5),
            "areas": np.array([a.area for a in file.annotations], np.float64),
            **_packed("names", names),
            **_packed("counts", [a.counts for a in file.annotations]),
            "rest": np.frombuffer(json.dumps(rest).encode(), np.uint8),
        }
    except OverflowError:
        return None


def _load(index: Path, path: Path) -> CocoFile | None:
    """What the index has; None if it is missing or damaged."""
    try:
        with np.load(index, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
            rest = json.loads(found["rest"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    names = map(_text, _unpacked("names", found))
    images = [
        ImageRecord(number, name, height, width)
        for (number, height, width), name in zip(found["images"].tolist(), names, strict=True)
    ]
    rows = zip(
        *found["annotations"].T.tolist(),
        found["areas"].tolist(),
        _unpacked("counts", found),
        strict=True,
    )
    annotations = [
        AnnotationRecord(number, image, category, counts, pixels, area, bool(crowd))
        for number, image, category, pixels, crowd, area, counts in rows
    ]
    return CocoFile(
        path, {image.id: image for image in images}, dict(rest["categories"]), annotations,
        rest["listed"], rest["without_polygon"], rest["short_polygons"],
    )  # fmt: skip


def _packed(name: str, parts: Sequence[bytes]) -> dict[str, np.ndarray[Any, Any]]:
    ends = np.array([0, *itertools.accumulate(map(len, parts))], np.int64)
    return {name: np.frombuffer(b"".join(parts), np.uint8), f"{name}_ends": ends}


def _unpacked(name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> list[bytes]:
    whole = arrays[name].data
    return [bytes(whole[a:b]) for a, b in itertools.pairwise(arrays[f"{name}_ends"].tolist())]


def _bytes(name: str | None) -> bytes:
    """A file name after an equals sign; nothing where there is none, which differs from an empty
    name."""
    return b"" if name is None else b"=" + name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str | None:
    return name[1:].decode("utf-8", "surrogatepass") if name else None
