"""What `train.precision` makes of a GPU, and that torch's switches are as they were afterwards."""

from __future__ import annotations

import pytest
import torch

from alignmask.training.precision import Precision, resolve


@pytest.mark.parametrize(
    ("wish", "capability", "expected"),
    [
        ("auto", None, Precision("no", tf32=False)),
        ("auto", (7, 0), Precision("fp16", tf32=True)),
        ("auto", (7, 5), Precision("fp16", tf32=True)),
        ("auto", (8, 0), Precision("bf16", tf32=True)),
        ("auto", (9, 0), Precision("bf16", tf32=True)),
        ("fp32", (9, 0), Precision("no", tf32=False)),
        ("tf32", (9, 0), Precision("no", tf32=True)),
        ("fp16", (9, 0), Precision("fp16", tf32=True)),
        ("bf16", None, Precision("bf16", tf32=True)),
    ],
)
def test_resolve(wish: str, capability: tuple[int, int] | None, expected: Precision) -> None:
    assert resolve(wish, capability) == expected  # type: ignore[arg-type]


def test_bfloat16_is_refused_where_it_would_be_emulated() -> None:
    with pytest.raises(
        ValueError, match=r"compute capability 7.0\) has no bfloat16 arithmetic; use fp16, or auto"
    ):
        resolve("bf16", (7, 0))


@pytest.mark.parametrize("tf32", [False, True])
def test_switches_are_set_and_restored(tf32: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = matmul.allow_tf32, cudnn.allow_tf32
    try:
        for before in ((False, True), (True, False)):
            matmul.allow_tf32, cudnn.allow_tf32 = before
            with Precision("no", tf32=tf32).applied():
                assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
            assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = found
