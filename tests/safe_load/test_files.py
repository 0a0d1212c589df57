"""What is read is what was written, in every format."""

from __future__ import annotations

import json
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file
from torch import Tensor

from alignmask.safe_load import CheckpointError, read_huggingface, read_pickled, read_tensors

TENSORS = {
    "matrix": torch.arange(12.0).view(3, 4),
    "integers": torch.arange(5),
    "half": torch.linspace(0, 1, 4).half(),
    "bfloat16": torch.linspace(0, 1, 4).bfloat16(),
    "double": torch.rand(2, 2, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3.0),
    "view": torch.arange(24.0).view(6, 4)[::2, 1:],
    "transposed": torch.arange(20.0).view(4, 5).t(),
}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", ["plain", "model", "state_dict", "parameters"])
def test_torch_save(zipped: bool, wrapped: str, tmp_path: Path) -> None:
    content: Any = TENSORS
    expected = TENSORS
    if wrapped == "parameters":
        expected = content = {
            n: torch.nn.Parameter(t) for n, t in TENSORS.items() if t.is_floating_point()
        }
    elif wrapped != "plain":
        content = {
            wrapped: OrderedDict(TENSORS),
            "iteration": 7,
            "optimizer": {"lr": 1e-4, "steps": [1, 2], "x": None},
        }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_equal(read_tensors(tmp_path / "x.pth"), expected)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_tensors(protocol: int, tmp_path: Path) -> None:
    """A tensor in a plain pickle brings a torch.save file in the old format with it."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": TENSORS, "__author__": "us"}, protocol))
    assert_equal(read_tensors(tmp_path / "x.pkl"), TENSORS)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    # With its _metadata.
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(module.state_dict(), protocol))
    assert_equal(read_tensors(tmp_path / "x.pkl"), module.state_dict())


NUMBERS = st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?", ">f4", ">i8"])


@given(
    NUMBERS.flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0))
    ),
    st.integers(2, 5),
    st.booleans(),
)
def test_pickles_of_arrays(
    tmp_path_factory: Any, array: np.ndarray, protocol: int, fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.getbasetemp() / "arrays.pkl"
    path.write_bytes(
        pickle.dumps({"model": {"a": array}, "step": np.float32(1.5), "n": np.int64(3)}, protocol)
    )
    found = read_tensors(path)["a"]
    expected = torch.from_numpy(np.array(array.astype(array.dtype.newbyteorder("=")), order="C"))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert read_pickled(path)["n"] == 3


def test_an_optimizers_state(tmp_path: Path) -> None:
    """All of a training state: what a stopped run goes on from."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "scaler": None}, tmp_path / "state.pt")
    found = read_pickled(tmp_path / "state.pt")
    assert found["scaler"] is None
    expected = optimizer.state_dict()
    assert found["optimizer"]["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        assert all(
            torch.equal(found["optimizer"]["state"][index][name], tensor)
            for name, tensor in state.items()
        )


def test_tensors_that_share_memory_still_do(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"whole": whole, "part": whole[2:]}, tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


# ---- safetensors, Hugging Face's folders


def test_safetensors(tmp_path: Path) -> None:
    expected = {name: tensor.contiguous().clone() for name, tensor in sorted(TENSORS.items())}
    save_file(expected, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert_equal(dict(sorted(found.items())), expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{x",
        struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[99999],"data_offsets":[0,399996]}}',
        pickle.dumps({"a": 1}),
    ],
)
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no whole safetensors file"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_huggingface_folders(name: str, tmp_path: Path) -> None:
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.ones(1)}]
    save = save_file if name.endswith("safetensors") else torch.save
    save(parts[0] | parts[1], tmp_path / name)
    assert_equal(dict(sorted(read_huggingface(tmp_path).items())), parts[0] | parts[1])

    (tmp_path / name).unlink()
    stem, suffix = name.split(".")
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for part, file in zip(parts, files, strict=True):
        save(part, tmp_path / file)
    index = tmp_path / f"{name}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": files[0], "b": files[1], "c": files[1]}}))
    assert_equal(dict(sorted(read_huggingface(tmp_path).items())), parts[0] | parts[1])

    index.write_text(json.dumps({"weight_map": {"a": files[0], "d": files[1], "e": files[1]}}))
    with pytest.raises(CheckpointError, match="its files lack 2 tensors: d, e"):
        read_huggingface(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./etc/passwd' is no file beside it"):
        read_huggingface(tmp_path)
    index.write_text("[")
    with pytest.raises(CheckpointError, match="no JSON"):
        read_huggingface(tmp_path)
    index.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"
    ):
        read_huggingface(tmp_path)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_huggingface(tmp_path)["a"] == 1
