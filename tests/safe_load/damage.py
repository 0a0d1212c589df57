"""Files with tensors, and what can be wrong with them: any bytes, instructions of pickles in any
place, archives and headers that lie."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

MARK = "executed"
"""The file that a pickle's code would make if it ran."""
SHELL = f"touch {MARK}"


def valid() -> dict[str, bytes]:
    """Small files of every format, by name."""
    tensors = {
        "matrix": torch.arange(12.0).view(3, 4),
        "half": torch.linspace(0, 1, 4).half(),
        "view": torch.arange(24.0).view(6, 4)[::2, 1:],
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
    }
    state = {"optimizer": {"state": {0: tensors}, "param_groups": [{"lr": 1e-4}]}, "scaler": None}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    files = {
        f"protocol{number}.pkl": pickle.dumps({"model": arrays, "step": np.int64(3)}, number)
        for number in range(2, 6)
    }
    files["tensors.pkl"] = pickle.dumps({"model": tensors}, 4)
    files["zip.pth"] = saved(tensors)
    files["state.pt"] = saved(state)
    files["legacy.pth"] = saved({"state_dict": tensors}, zipped=False)
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    files["x.safetensors"] = save(whole)
    return files


def saved(value: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def damaged(name: str, files: dict[str, bytes], chance: random.Random) -> bytes:
    """One of the files, with one to three things wrong."""
    content = files[name]
    damages: list[Callable[[bytes, random.Random], bytes]] = [bytes_changed]
    if name == "x.safetensors":
        damages += [header_changed] * 3
    elif content.startswith(b"PK"):
        damages += [archive_changed, within_archive(pickle_changed), within_archive(bytes_changed)]
    else:
        damages += [pickle_changed] * 3
    if chance.random() < 0.05:
        return content[: chance.randrange(len(content))] + other_end(files, chance)
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = chance.choice(damages)(content, chance)
    return content


def other_end(files: dict[str, bytes], chance: random.Random) -> bytes:
    other = files[chance.choice(sorted(files))]
    return other[chance.randrange(len(other)) :]


# ---- any bytes

NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)  # fmt: skip


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    place = chance.randrange(len(data) + 1)
    what = chance.randrange(6)
    if what == 0:
        return bytes(data[:place])
    if what == 1:
        for _ in range(chance.choice((1, 1, 2, 8))):
            if data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif what == 2:
        size = chance.choice((1, 2, 4, 8))
        number = chance.choice(NUMBERS) % 2 ** (8 * size)
        data[place : place + size] = number.to_bytes(size, chance.choice(("little", "big")))
    elif what == 3:
        data[place:place] = chance.randbytes(chance.choice((1, 2, 4, 16, 300)))
    elif what == 4:
        del data[place : place + chance.choice((1, 2, 4, 16, 300))]
    else:
        data[place:place] = data[place : place + chance.choice((4, 64, 2000))]
    return bytes(data)


# ---- pickles


def call(module: str, name: str, *arguments: str) -> bytes:
    texts = b"".join(b"X" + struct.pack("<I", len(a)) + a.encode() for a in arguments)
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR"


SPLICED = (
    call("os", "system", SHELL),
    call("posix", "system", SHELL),
    call("builtins", "eval", f"open('{MARK}', 'w')"),
    call("builtins", "exec", f"open('{MARK}', 'w')"),
    call("builtins", "open", MARK, "w"),
    call("pathlib", "Path.touch", MARK),
    call("torch", "load", MARK),
    call("torch.storage", "_load_from_bytes", "x"),
    b"(ios\nsystem\n",
    b"(X\x0e\x00\x00\x00touch executedios\nsystem\n",
    b"(cos\nsystem\nX\x0e\x00\x00\x00touch executedo",
    b"cos\nsystem\n\x8c\x0etouch executed\x85\x81",
    b"cos\nsystem\n)}\x92",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x0etouch executed\x85R",
    b"cnumpy\nndarray\n)R", b"ccollections\nOrderedDict\n(lR", b"ctorch._utils\n_rebuild_tensor_v2\n(tR",
    b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R", b"ctorch\nFloatStorage\nK\x05\x85R",
    b"}b", b"}cos\nenviron\nb", b"N(K\x01K\x02ub", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"P7\n", b"Q",
    b"\x8b\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\xff", b"\x8a\xff" + b"\x7f" * 255, b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096,
    b"\x8d" + b"\xff" * 8, b"\x8d" + struct.pack("<Q", 2**40), b"\x8e" + struct.pack("<Q", 2**62),
    b"\x96" + struct.pack("<Q", 2**33), b"\x95" + struct.pack("<Q", 2**63), b"X\xff\xff\xff\xff", b"T\xff\xff\xff\x7f",
    b"B\xff\xff\xff\xff", b"L" + b"9" * 6000 + b"L\n", b"I" + b"1" * 6000 + b"\n", b"F1e999\n", b"Fnan\n", b"I0x\n",
    b"(" * 5000, b"]" * 5000, b"(" * 3000 + b"t" * 3000, b"]" + b"]a" * 3000, b"}" + b"}s" * 30, b"N\x85" * 3000,
    b"q\x00h\x00\x86" * 60, b"]q\x07h\x07a", b"h\xff", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"p99999999999\n",
    b"g-1\n", b"p-1\n", b"\x94" * 3000, b"0" * 40, b"1", b"2", b"2" * 2000, b".", b"\x97", b"\x98", b"e", b"u", b"\x90",
    b"\x91", b"\x8f", b"\x80\x05", b"\x80\xff", b"V\\ud800\n", b"S'\\x'\n", b"S''\n", b"Sx\n", b"\x00", b"\xff",
)  # fmt: skip
"""What is put between two instructions."""


def pickle_changed(content: bytes, chance: random.Random) -> bytes:
    """Instructions in, out or twice, or a number or text in one changed. Anything that is no pickle
    any more has its bytes changed."""
    places = boundaries(content)
    if len(places) < 3:
        return bytes_changed(content, chance)
    number = chance.randrange(len(places) - 1)
    begin, end = places[number : number + 2]
    what = chance.randrange(6)
    if what <= 1:
        return content[:begin] + chance.choice(SPLICED) + content[begin:]
    if what == 2:
        return content[:begin] + content[end:]
    if what == 3:
        far = places[min(number + chance.randrange(1, 40), len(places) - 1)]
        return content[:far] + content[begin:far] * chance.choice((1, 1, 2, 20)) + content[far:]
    if what == 4:
        return content[:begin] + chance.choice(pickletools.opcodes).code.encode("latin-1") + content[begin + 1 :]  # fmt: skip
    argument = bytearray(content[begin + 1 : end])
    size = min(len(argument), chance.choice((1, 2, 4, 8)))
    argument[:size] = (chance.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
    return content[: begin + 1] + bytes(argument) + content[end:]


def boundaries(content: bytes) -> list[int]:
    """Where instructions begin, as far as they can be read."""
    places: list[int] = []
    try:
        for _, _, place in pickletools.genops(content):
            places.append(place or 0)
    except Exception:  # the end of what can be read
        return places
    return places


# ---- zip archives


def parts_of(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.compress_size + entry.file_size for entry in archive.infolist()) > 10**6:
                return {}  # a bomb of our own
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # what was damaged before
        return {}


def archive_of(parts: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in parts:
            archive.writestr(name.strip("\0") or "nothing", data)
    return file.getvalue()


def within_archive(
    change: Callable[[bytes, random.Random], bytes],
) -> Callable[[bytes, random.Random], bytes]:
    """A change of one file in an archive, whose checksum then fits."""

    def changed(content: bytes, chance: random.Random) -> bytes:
        parts = parts_of(content)
        if not parts:
            return bytes_changed(content, chance)
        pickled = [name for name in parts if name.endswith("data.pkl")]
        name = chance.choice(pickled * 3 + sorted(parts))
        parts[name] = change(parts[name], chance)
        return archive_of(list(parts.items()))

    return changed


NAMES = (
    "../../executed", "/tmp/executed", "..\\executed", "x/data.pkl", "data.pkl", "x/y/data.pkl", "x/constants.pkl",
    "é" * 300, "",
)  # fmt: skip


def archive_changed(content: bytes, chance: random.Random) -> bytes:
    """Other names, compressed entries and bombs, entries twice, lengths that are not true."""
    parts = list(parts_of(content).items())
    if not parts:
        return bytes_changed(content, chance)
    number = chance.randrange(len(parts))
    name, data = parts[number]
    what = chance.randrange(7)
    if what == 0:
        parts[number] = (chance.choice((*NAMES, name + "\0")), data)
    elif what == 1:
        methods = zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
        return archive_of(parts, chance.choice(methods))
    elif what == 2:
        parts[number] = (name, bytes(30_000_000))
        return archive_of(parts, zipfile.ZIP_DEFLATED)
    elif what == 3:
        parts.append((name, chance.choice((data, b"", SPLICED[0]))))
    elif what == 4:
        del parts[number]
    elif what == 5:
        other = chance.randrange(len(parts))
        parts[number], parts[other] = (name, parts[other][1]), (parts[other][0], data)
    else:
        return central_directory_changed(archive_of(parts), chance)
    return archive_of(parts)


ENTRY_FIELDS = ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))
"""Place and size in an entry's record: flags, method, checksum, both sizes, lengths of the texts,
offset."""
END_FIELDS = ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))
"""In the record at the end: counts, size and offset of the directory, length of the comment."""


def central_directory_changed(content: bytes, chance: random.Random) -> bytes:
    """Sizes, offsets and flags that the archive declares of an entry, or of its own directory."""
    data = bytearray(content)
    records, place = [], data.find(b"PK\x01\x02")
    while place >= 0:
        records.append(place)
        place = data.find(b"PK\x01\x02", place + 4)
    fields = [(place, *field) for place in records for field in ENTRY_FIELDS]
    fields += [(data.rfind(b"PK\x05\x06"), *field) for field in END_FIELDS] * 3
    place, offset, size = chance.choice(fields)
    number = chance.choice((*NUMBERS, chance.randrange(len(data)))) % 2 ** (8 * size)
    data[place + offset : place + offset + size] = number.to_bytes(size, "little")
    return bytes(data)


# ---- safetensors


def header_changed(content: bytes, chance: random.Random) -> bytes:
    """A header that lies, with the length that it has, or with another."""
    length = int.from_bytes(content[:8], "little")
    try:
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        name = chance.choice(sorted(header))
        entry = header[name]
        text = _header_text(header, name, entry, chance)
    except Exception:  # what was damaged before
        return bytes_changed(content, chance)
    declared = chance.choice((len(text),) * 6 + NUMBERS)
    return declared.to_bytes(8, "little") + text + data


def _header_text(
    header: dict[str, Any], name: str, entry: dict[str, Any], chance: random.Random
) -> bytes:
    what = chance.randrange(8)
    begin, end = entry["data_offsets"]
    if what == 0:
        entry["data_offsets"] = chance.choice(
            (
                (begin, end + 1), (end, begin), (begin, 2**64 - 1), (2**63, 2**63 + 4), (-1, end), (0, end),
                (begin, 2**70), (begin,), (),
            )
        )  # fmt: skip
    elif what == 1:
        entry["shape"] = chance.choice(
            (
                [2**32, 2**32], [2**63], [2**64 - 1, 2], [0, 2**63], [-1], [], [1] * 300, ["3"], [1.5], None, [99999],
                [2**31, 2**31, 4],
            )
        )  # fmt: skip
    elif what == 2:
        entry["dtype"] = chance.choice(
            ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F64", "U64", "U16", "C64", "BOOL",
             "I8", "X", "", None, 5, "f32")
        )  # fmt: skip
    elif what == 3:
        header[name + chance.choice(("", "\0", "é", "x" * 5000))] = chance.choice(
            (entry, header[chance.choice(sorted(header))], None, {}, [], 5)
        )
    elif what == 4:
        header["__metadata__"] = chance.choice(({"a": "b"}, {"a": 1}, [], None, {"a": "b" * 9999}))
    elif what == 5:
        del entry[chance.choice(sorted(entry))]
    elif what == 6:  # one name twice
        text = json.dumps(header)
        return (text[:-1] + "," + json.dumps({name: entry})[1:]).encode()
    else:
        return chance.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b"{}", b"null", b"", b"{", b'{"":{}}', b"\xff" * 20)
        )
    return json.dumps(header).encode()
