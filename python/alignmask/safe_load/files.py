"""Files with tensors in them -> {name: tensor}. Nothing in a file is executed, and no file makes us
allocate much more memory than it is long."""

from __future__ import annotations

import io
import json
import mmap
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignmask.safe_load.pickles import (
    SLACK,
    STORAGES,
    Array,
    CheckpointError,
    Global,
    Reader,
    Storage,
    brief,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What a file begins with that torch.save wrote in its old format."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, a torch.save file (either format) or a pickle, by what
    the file is, not by its name.

    Of nested dictionaries, as training programs write them, "model" or "state_dict" is taken.
    Raises FileNotFoundError, or CheckpointError that names the file: damaged, truncated, of another
    kind, or asking for code.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_pickled(path)
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, found {type(content).__name__}"
        )
    odd = {
        name if isinstance(name, str) else brief(name): type(value).__name__
        for name, value in content.items()
        if not _is_tensor(name, value)
    }
    if odd:
        raise CheckpointError(
            f"{path}: these entries are no named tensors: "
            f"{', '.join(f'{n} ({k})' for n, k in odd.items())}"
        )
    declared = sum(_values(value).nbytes for value in content.values())
    size = path.stat().st_size
    if declared > SLACK * size:  # views of the same memory, many times
        raise CheckpointError(
            f"{path}: refused: its tensors declare {declared} bytes, the file has {size}"
        )
    return {name: _to_tensor(value) for name, value in content.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    _must_exist(path)
    try:
        return load_file(path)
    except Exception as error:  # its own error, and any of torch's for a shape that no tensor has
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: no whole safetensors file: {reason}") from error


def read_pickled(path: Path) -> Any:
    """The whole value of a torch.save file or of a pickle: basic types, tensors and `Array`s."""
    _must_exist(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start == b"PK\x03\x04":
                return _read_zip(file)
            if start[:1] != b"\x80":
                raise CheckpointError(
                    f"neither a pickle nor a torch.save file: it begins with {start!r}"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read_pickle(content)  # type: ignore[arg-type]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_huggingface(folder: Path) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder: safetensors if there are any, else .bin; in one file or
    in several."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise FileNotFoundError(
        f"{folder}: neither model.safetensors nor pytorch_model.bin is there, nor an index of "
        "several"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{index}: expected a weight_map of tensors and files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index}: {file!r} is no file beside it")
        tensors |= read_tensors(index.parent / file)
    if missing := sorted(set(names) - set(tensors)):
        raise CheckpointError(
            f"{index}: its files lack {len(missing)} tensors: {', '.join(missing)}"
        )
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    _must_exist(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")


def _is_tensor(name: Any, value: Any) -> bool:
    filled = isinstance(value, Tensor) or (isinstance(value, Array) and value.values is not None)
    return isinstance(name, str) and filled


def _values(value: Tensor | Array) -> Tensor | np.ndarray:
    if isinstance(value, Tensor):
        return value
    assert value.values is not None
    return value.values


def _to_tensor(value: Tensor | Array) -> Tensor:
    values = _values(value)
    if isinstance(values, Tensor):
        return values
    # A copy, that can be written to.
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


# ---- torch.save: a zip file with a pickle and, beside it, a file for every storage


def _read_zip(file: BinaryIO) -> Any:
    size = file.seek(0, os.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        found = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1 or any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                "a zip file, but not one that torch.save wrote (a TorchScript program, perhaps)"
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(
                "refused: a zip file with compressed entries, which torch never writes"
            )
        if any(entry.compress_size != entry.file_size for entry in entries):
            # zipfile would allocate the one that is not checked below.
            raise CheckpointError("damaged: an entry declares two lengths")
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"refused: its entries declare more bytes than the file's {size}")
        prefix = found[0].removesuffix("data.pkl")
        if (
            f"{prefix}byteorder" in names
            and archive.read(f"{prefix}byteorder").decode() != sys.byteorder
        ):
            raise CheckpointError("written on a machine of another byte order")
        storages: dict[str, Storage] = {}

        def storage(identity: Any) -> Storage:
            key, dtype, count = _storage_identity(identity)
            if key not in storages:
                storages[key] = _storage(archive.read(f"{prefix}data/{key}"), dtype, count)
            return storages[key]

        return Reader(size, storage).read(io.BytesIO(archive.read(found[0])))
    except CheckpointError:
        raise
    except Exception as error:  # zipfile fails in many ways on a damaged archive: BadZipFile, OSError, KeyError, ...
        raise CheckpointError(
            f"damaged or truncated zip file: {type(error).__name__}: {error}"
        ) from error


def _storage_identity(identity: Any) -> tuple[str, torch.dtype, int]:
    """("storage", type, key, device, count) -> key, dtype, count; the old format may have a sixth
    part, then None."""
    kind, storage_type, key, _, count, *view = identity
    if (
        kind != "storage"
        or not isinstance(storage_type, Global)
        or storage_type.name not in STORAGES
        or any(view)
    ):
        raise CheckpointError(f"refused: {brief(identity)} is no storage")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise CheckpointError(f"damaged: {brief(identity)} is no storage")
    return key, STORAGES[storage_type.name], count


def _storage(data: bytes, dtype: torch.dtype, count: int) -> Storage:
    if count * dtype.itemsize != len(data):
        raise CheckpointError(
            f"a storage declares {count * dtype.itemsize} bytes, but has {len(data)}"
        )
    return Storage(
        torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    )


# ---- pickles: plain ones, and torch.save's old format of five pickles, then the storages


def _read_pickle(file: BinaryIO, nested: bool = False) -> Any:
    """nested: for bytes inside a pickle, which may not contain such bytes again."""
    length = _length(file)
    first = Reader(length, load_bytes=None if nested else _load_bytes).read(file)
    if type(first) is not int or first != LEGACY_MAGIC:
        return first
    _, system = Reader(length).read(file), Reader(length).read(file)
    if not isinstance(system, dict) or system.get("little_endian") is not (
        sys.byteorder == "little"
    ):
        raise CheckpointError("written on a machine of another byte order")
    left = length - file.tell()
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        nonlocal left
        key, dtype, count = _storage_identity(identity)
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise CheckpointError(
                    "damaged or truncated: its storages declare more bytes than the file has"
                )
            storages[key] = Storage(torch.empty(count, dtype=dtype))
        return storages[key]

    content = Reader(length, storage).read(file)
    keys = Reader(length).read(file)
    if not isinstance(keys, list):
        raise CheckpointError("damaged: the list of its storages is missing")
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise CheckpointError(f"damaged: {brief(key)} is no storage of its tensors")
        _fill(storages[key], file)
    return content


def _length(file: BinaryIO) -> int:
    position = file.tell()
    file.seek(0, os.SEEK_END)
    length = file.tell()
    file.seek(position)
    return length


def _fill(storage: Storage, file: BinaryIO) -> None:
    values = storage.values
    count = int.from_bytes(file.read(8), sys.byteorder)
    data = file.read(values.nbytes)
    if count != len(values) or len(data) != values.nbytes:
        raise CheckpointError("damaged or truncated: a storage is not as long as it declares")
    if data:
        values.copy_(torch.frombuffer(bytearray(data), dtype=values.dtype))


def _load_bytes(data: bytes) -> Storage:
    """A tensor in a plain pickle carries its storage as the bytes of a torch.save file in the old
    format."""
    storage = _read_pickle(io.BytesIO(data), nested=True)
    if not isinstance(storage, Storage):
        raise CheckpointError("damaged: a tensor's bytes are no storage")
    return storage
