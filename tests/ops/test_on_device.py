"""What carries the suite's calls out on a GPU, tried with the CPU as the other device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from alignmask import ops
from alignmask.ops import _library
from tests.ops import cases
from tests.ops.compare import assert_same
from tests.ops.on_device import OnDevice


class Core:
    """Keeps what it is called with and fills the first tensor with ones."""

    def fill_forward(self, out: Tensor, *others: object, **options: object) -> str:
        self.seen = (out, *others, *options.values())
        out.fill_(1)
        return "done"

    def version(self) -> int:
        return 7


def test_views_stay_views() -> None:
    """Offsets, strides and a shared storage are there as here; what was written comes back."""
    memory = torch.zeros(20)
    out, beside = memory[1:13:2].view(2, 3).T, memory[4:16].view(3, 4)[:, :1].expand(3, 5)
    core = Core()
    assert OnDevice(core, "cpu").fill_forward(out, beside, 3, like=torch.arange(3)[::2]) == "done"
    there, near, number, like = core.seen
    for a, b in ((there, out), (near, beside), (like, torch.arange(3)[::2])):
        assert isinstance(a, Tensor)
        assert (a.shape, a.stride(), a.storage_offset()) == (
            b.shape,
            b.stride(),
            b.storage_offset(),
        )
    assert number == 3
    assert (
        there.untyped_storage().data_ptr()
        == near.untyped_storage().data_ptr()
        != memory.untyped_storage().data_ptr()
    )
    assert memory.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1] + [0] * 8


def test_other_functions_are_the_module_s() -> None:
    assert OnDevice(Core(), "cpu").version() == 7


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The other device is the CPU again."""
    monkeypatch.setattr(cases, "OnDevice", lambda core, device: OnDevice(core, "cpu"))
    yield
    assert not isinstance(_library.core, OnDevice)


@pytest.mark.parametrize("implementation", cases.ON_GPU)
def test_ops_run_there(elsewhere: None, implementation: str) -> None:
    value, levels, *points = cases.ms_deform_attn_from_offsets(cases.MS_DEFORM_ATTN["odd"])
    results = []
    for name in (implementation, "kernel"):
        with cases.using(name, "ms_deform_attn"):
            assert torch.are_deterministic_algorithms_enabled() == (name == "cuda deterministic")
            assert isinstance(_library.core, OnDevice) == (name != "kernel")
            leaf = value.clone().requires_grad_()
            out = ops.ms_deform_attn_from_offsets(leaf, levels, *points)
            results.append([out, *torch.autograd.grad(out.sum(), leaf)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert results[0][0].any()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_same_but_for_the_order_of_sums(dtype: torch.dtype) -> None:
    expected = torch.tensor([100.0, 1e-6], dtype=dtype)
    next_to_it = torch.nextafter(expected[:1], torch.tensor([200.0], dtype=dtype))
    near, far = expected.clone(), expected.clone()
    near[0], far[0] = next_to_it, expected[0] * (1 + 64 * torch.finfo(dtype).eps)
    assert_same(expected, expected)
    assert_same(near, expected, repeats=False)
    with pytest.raises(AssertionError):
        assert_same(near, expected)
    with pytest.raises(AssertionError):
        assert_same(far, expected, repeats=False)
