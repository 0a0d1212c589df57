"""Files that want to run code, that lie about their size, or that are damaged: refused with a clear
error, nothing executed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignmask.safe_load import CheckpointError, pickles, read_pickled, read_tensors

MARK = "executed"  # the file whose existence would show that code ran


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """Pickles as a call whose result is then given a state."""

    def __init__(self, function: Any, arguments: tuple, state: Any) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def global_call(module: str, name: str, *arguments: str) -> bytes:
    """A protocol 2 pickle of {"model": module.name(*arguments)}, for globals that cannot be had
    here."""
    texts = b"".join(b"X" + struct.pack("<I", len(a)) + a.encode() for a in arguments)
    return (
        b"\x80\x02}X\x05\x00\x00\x00modelc"
        + f"{module}\n{name}\n".encode()
        + b"("
        + texts
        + b"tRs."
    )


TOUCH = f"touch {MARK}"
PYTHON = f"open({MARK!r}, 'w')"
ATTACKS: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: pickle.dumps({"model": Calls(os.system, TOUCH)}),
    "posix.system by name": lambda: global_call("posix", "system", TOUCH),
    "os.mkdir": lambda: pickle.dumps(Calls(os.mkdir, MARK)),
    "subprocess": lambda: pickle.dumps({"model": {"w": Calls(subprocess.Popen, ["touch", MARK])}}),
    "eval": lambda: pickle.dumps(Calls(eval, PYTHON)),
    "exec": lambda: pickle.dumps(Calls(exec, PYTHON)),
    "builtins.getattr": lambda: pickle.dumps(Calls(getattr, "x", "upper")),
    "__builtin__.eval of Python 2": lambda: global_call("__builtin__", "eval", PYTHON),
    "open": lambda: pickle.dumps(Calls(open, MARK, "w")),
    "importlib": lambda: global_call("importlib", "import_module", "antigravity"),
    "a dotted name": lambda: global_call("numpy", "ndarray.tofile", MARK),
    "numpy.load": lambda: pickle.dumps(Calls(np.load, MARK)),
    "numpy.save": lambda: pickle.dumps(Calls(np.save, MARK, np.zeros(1))),
    "numpy.memmap": lambda: pickle.dumps(Calls(np.memmap, MARK, "u1", "w+", 0, (1,))),
    "numpy.f2py": lambda: global_call("numpy.f2py", "compile", "x"),
    "numpy.testing": lambda: global_call("numpy.testing._private.utils", "runstring", PYTHON, "{}"),
    "numpy.distutils": lambda: global_call("numpy.distutils.exec_command", "exec_command", TOUCH),
    "numpy.core._internal": lambda: global_call("numpy.core._internal", "_makenames_list", "x"),
    "an array of objects": lambda: pickle.dumps(
        {"w": np.array([Calls(os.system, TOUCH)], dtype=object)}
    ),
    "an array of harmless objects": lambda: pickle.dumps(
        {"w": np.array([None, "x"], dtype=object)}
    ),
    "an array of records": lambda: pickle.dumps(
        {"w": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])}
    ),
    "a dtype with metadata": lambda: pickle.dumps(np.dtype("f4", metadata={"x": 1})),
    "torch.load": lambda: pickle.dumps(Calls(torch.load, MARK)),
    "torch.hub": lambda: global_call("torch.hub", "load", "x", "y"),
    "torch.jit": lambda: global_call("torch.jit", "load", MARK),
    "a nested pickle": lambda: pickle.dumps(
        Calls(pickle.loads, pickle.dumps(Calls(os.system, TOUCH)))
    ),
    "a pickle in torch's bytes": lambda: pickle.dumps(
        Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, TOUCH)))
    ),
    "a torch file in torch's bytes": lambda: pickle.dumps(
        Calls(torch.storage._load_from_bytes, saved(Calls(os.system, TOUCH), zipped=False))
    ),
    "a module": lambda: saved(torch.nn.Linear(2, 2)),
    "an attack in torch's zip file": lambda: saved({"model": Calls(os.system, TOUCH)}),
    "an attack in torch's old format": lambda: saved(
        {"model": Calls(os.system, TOUCH)}, zipped=False
    ),
    "an attack after the tensors": lambda: saved(
        {"w": torch.ones(2), "x": Calls(os.system, TOUCH)}
    ),
    "a state for a function": lambda: pickle.dumps(
        Builds(np.dtype, ("f4",), (None, {"__code__": 1}))
    ),
    "the instruction INST": lambda: f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
    "INST after a protocol": lambda: b"\x80\x02" + f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
    "the instruction OBJ": lambda: b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.",
    "the instruction NEWOBJ": lambda: b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "the instruction NEWOBJ_EX": lambda: b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "an extension code": lambda: b"\x80\x02\x82\x01.",
    "a persistent id in a plain pickle": lambda: b"\x80\x02X\x01\x00\x00\x00xQ.",
    "a key that takes forever to hash": lambda: keyed("OrderedDict", NESTED),
    "the key in a Counter": lambda: keyed("Counter", NESTED),
    "a key of a hash that others can share": lambda: pickle.dumps({2**61 - 1: 0}),
    "the key, negative, in a set": lambda: pickle.dumps({-(2**61)}),
    "a call of what is no function": lambda: b"\x80\x02K\x01)R.",
    "a call of a type": lambda: b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
}


NESTED = b"K\x01\x85" + 60 * b"q\x00h\x00\x86"
"""(1,), in a pair with itself 60 times."""


def keyed(name: str, key: bytes) -> bytes:
    """A dictionary {key: 1} by a call: of a list of pairs, or of a dictionary as a Counter is."""
    items = key + b"K\x01"
    content = b"}" + items + b"s" if name == "Counter" else b"](" + items + b"\x86e"
    return b"\x80\x02ccollections\n" + name.encode() + b"\n" + content + b"\x85R."


def saved(value: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".bin"])
def test_no_code_is_run(
    attack: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"file{suffix}")
    path.write_bytes(ATTACKS[attack]())
    with pytest.raises(CheckpointError, match=rf"^file\{suffix}: ") as refused:
        read_tensors(path)
    assert "\n" not in str(refused.value)
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_the_attacks_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pickle.loads does run them."""
    monkeypatch.chdir(tmp_path)
    for attack in ("os.system", "eval", "numpy.save", "a nested pickle"):
        pickle.loads(ATTACKS[attack]())
        assert list(tmp_path.iterdir()), attack
        for file in tmp_path.iterdir():
            file.unlink()


def test_the_message_names_the_call(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(ATTACKS["os.system"]())
    with pytest.raises(
        CheckpointError,
        match=r"x\.pkl: refused: it asks for posix\.system\..*nothing of the file was run",
    ):
        read_tensors(tmp_path / "x.pkl")


def test_what_may_be_called_is_ours() -> None:
    """No global of a pickle leads to code of another module: each of the table is a function of the
    reader's own."""
    assert {function.__module__ for function in pickles.CALLS.values()} == {
        "alignmask.safe_load.pickles"
    }
    assert not set(pickles.CALLS) & set(pickles.TYPES)
    modules = {
        name.rsplit(".", 1)[0] for name in (*pickles.CALLS, *pickles.TYPES, pickles.LOAD_BYTES)
    }
    assert modules == {
        "__builtin__", "_codecs", "collections", "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
        "numpy.core.numeric", "numpy._core.numeric", "torch", "torch._utils", "torch.storage",
    }  # fmt: skip


# ---- declared sizes


BOMBS: dict[str, Callable[[], bytes]] = {
    "an array larger than its bytes": lambda: array_state((10**12,), bytes(16)),
    "an array whose size overflows": lambda: array_state((2**40, 2**40), bytes(16)),
    "a negative size": lambda: array_state((-4,), bytes(16)),
    "a string of 2^60 bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "a text of 4 GB": lambda: b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"x.",
    "a frame of 2^62 bytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "a memo index of 4 billion": lambda: b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".",
    "a number of 2 GB": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "millions of small objects": lambda: b"\x80\x02(" + b"]" * 1_100_000 + b"t.",
    "bytes encoded a thousand times": lambda: (
        b"\x80\x02(X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x000c_codecs\nencode\nq\x010"
        + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 1000 + b"t."
    ),
    "a dictionary copied a thousand times": lambda: (
        b"\x80\x02(](" + b"]" * 10**5 + b"eq\x000ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R" * 1000 + b"t."
    ),
    "one array under a thousand names": lambda: pickle.dumps(dict.fromkeys(map(str, range(1000)), np.zeros(10**5))),
}  # fmt: skip


def array_state(shape: tuple[int, ...], data: bytes) -> bytes:
    state = (1, shape, np.dtype("f4"), False, data)
    return pickle.dumps(
        {"w": Builds(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)}
    )


@pytest.mark.parametrize("bomb", BOMBS)
def test_declared_sizes_are_checked(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(BOMBS[bomb]())
    before = peak_memory()
    with pytest.raises(CheckpointError, match=r"x\.pkl: "):
        read_tensors(path)
    assert peak_memory() - before < 300 * 2**20


def peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rewrite(
    content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A torch.save file with other entries."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return buffer.getvalue()


def test_storages_have_the_size_that_they_declare(tmp_path: Path) -> None:
    path, good = tmp_path / "x.pth", saved({"w": torch.ones(8)})
    path.write_bytes(
        rewrite(good, lambda name, data: data[:16] if name.endswith("data/0") else data)
    )
    with pytest.raises(CheckpointError, match=r"x\.pth: a storage declares 32 bytes, but has 16"):
        read_tensors(path)
    path.write_bytes(
        rewrite(
            good,
            lambda name, data: data.replace(b"K\x08", b"K\x09") if name.endswith("pkl") else data,
        )
    )
    with pytest.raises(CheckpointError, match="declares 36 bytes, but has 32"):
        read_tensors(path)


def test_tensors_stay_inside_their_storage(tmp_path: Path) -> None:
    rebuild, order = torch._utils._rebuild_tensor_v2, {}
    storage = torch.ones(8).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    for offset, size, stride in ((0, (9,), (1,)), (4, (5,), (1,)), (0, (2, 2), (8, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)),
                                 (0, (10**12,), (0,)), (0, (3, 3), (0, 0))):  # fmt: skip
        (tmp_path / "x.pkl").write_bytes(
            pickle.dumps({"w": Calls(rebuild, typed, offset, size, stride, False, order)})
        )
        with pytest.raises(
            CheckpointError, match=r"x\.pkl: .*(reaches past its storage|is no shape)"
        ):
            read_tensors(tmp_path / "x.pkl")


def test_a_compressed_zip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(
        rewrite(saved({"w": torch.zeros(10**6)}), lambda _, data: data, zipfile.ZIP_DEFLATED)
    )
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="compressed"):
        read_tensors(path)


def test_overlapping_zip_entries_are_refused(tmp_path: Path) -> None:
    """Many names in the directory, one content: a zip bomb without compression."""
    content = bytearray(saved({"w": torch.zeros(1000)}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        new.writestr("x/data.pkl", pickle.dumps({}))
        new.writestr("x/data/0", bytes(content))
        entry = new.getinfo("x/data/0")
        for index in range(1, 50):
            copy = zipfile.ZipInfo(f"x/data/{index}")
            copy.file_size, copy.compress_size, copy.CRC = (
                entry.file_size,
                entry.compress_size,
                entry.CRC,
            )
            copy.header_offset = entry.header_offset
            new.filelist.append(copy)
    path = tmp_path / "x.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="declare more bytes"):
        read_tensors(path)


# ---- damage


GOOD = {
    "pickle": lambda: pickle.dumps({"model": {"a": np.arange(50.0), "b": torch.ones(30)}}),
    "zip": lambda: saved({"model": {"a": torch.ones(50), "b": torch.ones(30)}}),
    "old": lambda: saved({"model": {"a": torch.ones(50), "b": torch.ones(30)}}, zipped=False),
}


@pytest.mark.parametrize("kind", GOOD)
def test_truncated_files_are_refused(kind: str, tmp_path: Path) -> None:
    content = GOOD[kind]()
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        (tmp_path / "x.pth").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth: "):
            read_tensors(tmp_path / "x.pth")


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_damaged_files_give_an_error_or_tensors(
    tmp_path_factory: Any, kind: str, data: st.DataObject
) -> None:
    content = bytearray(GOOD[kind]())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())


@given(st.binary(max_size=200))
def test_any_bytes_give_an_error(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pth"
    path.write_bytes(b"\x80\x02" + content)
    with pytest.raises(CheckpointError):
        read_tensors(path)


def test_every_instruction_is_known_or_refused(tmp_path: Path) -> None:
    """Alone, on a stack of two values: a value that is no dictionary of tensors, or an error; never
    a crash."""
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1")
        (tmp_path / "x.pkl").write_bytes(
            b"\x80\x02}}" + code + b"\x01\x00\x00\x00\x00\x00\x00\x00."
        )
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "x.pkl")


# ---- wrong formats


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a pickle nor a torch.save file: it begins with b''"),
        (b"<!DOCTYPE html><html>", "begins with b'<!DO'"),
        (b"\xff\xd8\xff\xe0JFIF", "neither a pickle"),
        (b"version https://git-lfs", "neither a pickle"),
        (pickle.dumps([1, 2]), "expected a dictionary of tensors, found list"),
        (pickle.dumps(torch.ones(2)), "expected a dictionary of tensors, found Tensor"),
        (saved(torch.ones(2)), "expected a dictionary of tensors, found Tensor"),
        (pickle.dumps({}), "expected a dictionary of tensors"),
        (pickle.dumps({"a": 1, "b": "x"}), r"these entries are no named tensors: a \(int\), b \(str\)"),
        (pickle.dumps({"model": {"a": np.ones(2), 3: np.ones(2)}}), r"no named tensors: 3 \(Array\)"),
    ],
)  # fmt: skip
def test_other_formats_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_tensors(tmp_path / "x.pkl")


def test_programs_and_other_zip_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", "")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match=r"not one that torch\.save wrote"):
        read_tensors(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        read_pickled(tmp_path / "nothing.pth")
