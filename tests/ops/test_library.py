"""The ops as torch operators: meta tensors, autocast, and the choice of what runs. See
test_operators.py, too."""

from __future__ import annotations

import pytest
import torch

from alignmask import _core, ops
from tests.ops import cases

OPERATORS = [op for op in ops.OPS if "kernel" in cases.implementations(op)]


def test_meta_tensors_give_shapes_and_errors() -> None:
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN["odd"], dtype=torch.float16
    )
    value, locations, weights = (t.to("meta") for t in (value, locations, weights))
    out = ops.ms_deform_attn(value, levels, locations, weights)
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, 27), torch.float16, "meta")
    with pytest.raises(ValueError, match=r"weights \(BQNLP\) has P = 2"):
        ops.ms_deform_attn(value, levels, locations, weights[..., :2])
    with pytest.raises(ValueError, match=r"logits \(BQNLP\) has P = 2"):
        ops.ms_deform_attn_from_offsets(
            value, levels, locations[:, :, 0, :, 0], locations, weights[..., :2]
        )


def test_autocast_leaves_the_dtypes_alone() -> None:
    """Half-precision values beside float32 locations are what autocast makes of a model's
    layers."""
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN["odd"], dtype=torch.bfloat16, points_dtype=torch.float32
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.ms_deform_attn(value, levels, locations, weights)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.ms_deform_attn(value, levels, locations, weights))


# ---- what runs


@pytest.mark.parametrize("op", OPERATORS)
def test_implementation_names_the_instruction_set(op: str) -> None:
    assert ops.implementation(op, "cpu") == f"kernel ({_core.cpu_instruction_set()})"
    assert ops.implementation(op, "meta") == "shapes only"
    assert ops.implementation(op, "mps") == "reference"


def test_use_reference_ends_with_its_block_even_after_an_error() -> None:
    def running() -> list[str]:
        return [ops.implementation(op, "cpu") for op in ops.OPS]

    def fail_inside() -> None:
        with ops.use_reference(OPERATORS[0]):
            assert ops.implementation(OPERATORS[0], "cpu") == "reference"
            with ops.use_reference():
                assert running() == ["reference"] * len(ops.OPS)
            assert (
                ops.implementation(OPERATORS[0], "cpu") == "reference"
            )  # the inner block takes back only what it added
            raise RuntimeError("inside")

    before = running()
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert running() == before


def test_the_reference_really_runs_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        torch.nn.functional, "grid_sample", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    arguments = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["tiny"])
    ops.ms_deform_attn(*arguments)
    assert not calls
    with ops.use_reference("ms_deform_attn"):
        ops.ms_deform_attn(*arguments)
    assert calls


def test_unknown_ops_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown op 'softmax': expected one of ms_deform_attn, "):
        ops.implementation("softmax", "cpu")
    with pytest.raises(ValueError, match="unknown op 'softmax'"), ops.use_reference("softmax"):
        pass
