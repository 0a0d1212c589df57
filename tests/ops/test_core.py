"""The extension module by itself: NumPy arrays and DLPack tensors in place, any strides, errors,
threads, forks.

Shapes: B images, S tokens, N heads, D channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from alignmask import _core
from tests.ops import cases, oracles
from tests.ops.oracles import Array

SHAPE = cases.MS_DEFORM_ATTN["odd"]
LEVELS = [size for level in SHAPE.levels for size in level]


def arrays(dtype: str = "float32") -> dict[str, Any]:
    """Arguments of the forward function, by name."""
    value, _, locations, weights = cases.ms_deform_attn(SHAPE, dtype=getattr(torch, dtype))
    out = np.full((SHAPE.B, SHAPE.Q, SHAPE.N * SHAPE.D), np.nan, dtype)
    return {
        "out": out,
        "value": value.numpy(),
        "level_shapes": LEVELS,
        "locations": locations.numpy(),
        "weights": weights.numpy(),
    }


def backward_arrays(dtype: str = "float32") -> dict[str, Any]:
    """Arguments of the backward function, by name."""
    given = arrays(dtype)
    given["grad_out"] = np.random.default_rng(0).normal(size=given.pop("out").shape).astype(dtype)
    for name in ("value", "locations", "weights"):
        given[f"grad_{name}"] = np.full_like(given[name], np.nan)
    return given


def expected(
    given: dict[str, Any], grad_out: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    wide = [np.asarray(given[name], np.float64) for name in ("value", "locations", "weights")]
    return oracles.ms_deform_attn(
        wide[0],
        SHAPE.levels,
        wide[1],
        wide[2],
        None if grad_out is None else grad_out.astype(np.float64),
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4), ("float16", 2e-2)]
)
def test_numpy_arrays(dtype: str, tolerance: float) -> None:
    given = arrays(dtype)
    _core.ms_deform_attn_forward(**given)
    np.testing.assert_allclose(given["out"], expected(given)[0], rtol=tolerance, atol=tolerance)
    given = backward_arrays(dtype)
    _core.ms_deform_attn_backward(**given)
    for name, wanted in zip(
        ("value", "locations", "weights"), expected(given, given["grad_out"])[1:], strict=True
    ):
        np.testing.assert_allclose(
            given[f"grad_{name}"], wanted, rtol=tolerance, atol=10 * tolerance, err_msg=name
        )


def backwards(array: Array) -> Array:
    """The same values behind negative strides in every dimension."""
    flip = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[flip])[flip]


def fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def with_gaps(array: Array) -> Array:
    holder = np.full([3 * size for size in array.shape], np.nan, array.dtype)
    view = holder[tuple(slice(1, None, 3) for _ in array.shape)]
    view[...] = array
    return view


@pytest.mark.parametrize("layout", [backwards, fortran, with_gaps])
def test_any_strides_of_inputs_and_outputs(layout: Callable[[Array], Array]) -> None:
    plain, strided = (
        arrays(),
        {k: layout(v) if isinstance(v, np.ndarray) else v for k, v in arrays().items()},
    )
    _core.ms_deform_attn_forward(**plain)
    _core.ms_deform_attn_forward(**strided)
    np.testing.assert_array_equal(strided["out"], plain["out"])
    plain = backward_arrays()
    strided = {
        k: layout(v) if isinstance(v, np.ndarray) else v for k, v in backward_arrays().items()
    }
    _core.ms_deform_attn_backward(**plain)
    _core.ms_deform_attn_backward(**strided)
    for name in ("grad_value", "grad_locations", "grad_weights"):
        np.testing.assert_array_equal(strided[name], plain[name], err_msg=name)


def test_nothing_beside_a_strided_output_is_written() -> None:
    given = arrays()
    holder = np.full((SHAPE.B, 2 * SHAPE.Q, 3 * SHAPE.N * SHAPE.D), 7, np.float32)
    given["out"] = holder[:, ::2, 1::3]
    _core.ms_deform_attn_forward(**given)
    given["out"][...] = 7
    assert (holder == 7).all()


def test_torch_tensors_and_other_dlpack_tensors() -> None:
    class Wrapped:
        """Speaks DLPack, and nothing else."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__(**options)

    class Old(torch.Tensor):
        """Has no exchange API, as all tensors before torch 2.11."""

        __dlpack_c_exchange_api__ = None

    for wrap in (lambda tensor: tensor, lambda tensor: tensor.as_subclass(Old), Wrapped):
        plain, given = arrays(), arrays()
        _core.ms_deform_attn_forward(**plain)
        tensors = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in given.items()
        }
        _core.ms_deform_attn_forward(
            **{k: wrap(v) if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}
        )
        np.testing.assert_array_equal(given["out"], plain["out"])


def test_no_reference_to_an_argument_is_kept() -> None:
    for given in (
        arrays(),
        {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in arrays().items()},
    ):
        before = {k: sys.getrefcount(v) for k, v in given.items()}
        _core.ms_deform_attn_forward(**given)
        given["weights"], kept = given["weights"][..., :1], given["weights"]
        with pytest.raises(ValueError, match="weights"):
            _core.ms_deform_attn_forward(**given)
        given["weights"] = kept
        del kept
        assert {k: sys.getrefcount(v) for k, v in given.items()} == before


@pytest.mark.parametrize("needed", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_none_stands_for_a_gradient_that_is_not_needed(needed: tuple[int, ...]) -> None:
    full, some = backward_arrays(), backward_arrays()
    for name, need in zip(("grad_value", "grad_locations", "grad_weights"), needed, strict=True):
        some[name] = some[name] if need else None
    _core.ms_deform_attn_backward(**full)
    _core.ms_deform_attn_backward(**some)
    for name, need in zip(("grad_value", "grad_locations", "grad_weights"), needed, strict=True):
        if need:
            np.testing.assert_array_equal(some[name], full[name])


# ---- errors


def unaligned(array: Array) -> Array:
    shifted = (
        np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    )
    return shifted


def overlapping(array: Array) -> Array:
    return np.lib.stride_tricks.as_strided(
        array, array.shape, (array.strides[0], array.strides[2], array.strides[2])
    )


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


NO_MEMORY = "value (has no memory|is on an? unsupported device|is on the unsupported device|does not show its memory)"

# what is wrong -> error, message, argument, its new value from the old one
ERRORS: dict[str, tuple[type[Exception], str, str, Callable[[Any], Any]]] = {
    "no tensor": (TypeError, "value must be a tensor .*, got list", "value", lambda _: [1.0]),
    "no output": (TypeError, "out is missing", "out", lambda _: None),
    "no input": (TypeError, "weights is missing", "weights", lambda _: None),
    "integers": (
        TypeError,
        "value must be of dtype float32, .*, got int64",
        "value",
        lambda a: a.astype("i8"),
    ),
    "complex": (ValueError, "value has the unsupported format 'Zf'", "value", lambda a: a + 0j),
    "big endian": (
        ValueError,
        "value has the unsupported format '>f'",
        "value",
        lambda a: a.astype(">f4"),
    ),
    "dtype of weights": (
        TypeError,
        "weights must be .* float32, got float64",
        "weights",
        lambda a: a.astype("f8"),
    ),
    "dtype of out": (
        TypeError,
        "out must be of dtype float32, got float16",
        "out",
        lambda a: a.astype("f2"),
    ),
    "rank": (
        ValueError,
        r"value must have the 4 dimensions BSND, got \(2, 702\)",
        "value",
        lambda a: a.reshape(2, -1),
    ),
    "too many dimensions": (
        ValueError,
        "value has 9 dimensions, at most 8",
        "value",
        lambda a: a[(None,) * 5],
    ),
    "size": (
        ValueError,
        r"weights \(BQNLP\) has Q = 4 in .*, but locations has Q = 5",
        "weights",
        lambda a: a[:, :4],
    ),
    "coordinates": (
        ValueError,
        r"locations \(BQNLP2\) must have size 2 there",
        "locations",
        lambda a: a[..., :1],
    ),
    "size of out": (
        ValueError,
        r"out \(BQE\) must have E = N·D = 27, got \(2, 5, 26\)",
        "out",
        lambda a: a[..., :26],
    ),
    "odd sizes": (
        ValueError,
        r"level_shapes must hold pairs \(h, w\)",
        "level_shapes",
        lambda a: a[:-1],
    ),
    "missing level": (
        ValueError,
        "lists 2 levels, but locations has L = 3",
        "level_shapes",
        lambda a: a[:-2],
    ),
    "negative": (
        ValueError,
        r"level_shapes\[0\] = \(-3, -5\) is negative",
        "level_shapes",
        lambda a: [-3, -5, *a[2:]],
    ),
    "tokens": (
        ValueError,
        r"adds up to 30 tokens, but value has S = 26",
        "level_shapes",
        lambda a: [*a[:-1], 2],
    ),
    "huge level": (
        ValueError,
        "too many tokens for 32-bit",
        "level_shapes",
        lambda a: [2**32, 2**32, *a[2:]],
    ),
    "huge empty level": (
        ValueError,
        "too many tokens for 32-bit",
        "level_shapes",
        lambda a: [0, 2**40, *a[2:]],
    ),
    "read-only output": (
        ValueError,
        "out is an output, but its memory is read-only",
        "out",
        read_only,
    ),
    "overlapping output": (
        ValueError,
        "out is an output, but several of its elements share one",
        "out",
        overlapping,
    ),
    "expanded output": (
        ValueError,
        "several of its elements share",
        "out",
        lambda _: torch.zeros(1, 5, 27).expand(2, 5, 27),
    ),
    "unaligned": (ValueError, "value is not aligned to its element size", "value", unaligned),
    "meta": (ValueError, NO_MEMORY, "value", lambda a: torch.zeros(a.shape, device="meta")),
    "sparse": (ValueError, NO_MEMORY, "value", lambda a: torch.zeros(a.shape).to_sparse()),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(name: str) -> None:
    error, message, argument, change = ERRORS[name]
    given = arrays()
    given[argument] = change(given[argument])
    with pytest.raises(error) as caught:
        _core.ms_deform_attn_forward(**given)
    assert str(caught.value).startswith("ms_deform_attn: ")
    assert re.search(message, str(caught.value)), str(caught.value)
    if isinstance(given["out"], np.ndarray):
        assert np.isnan(given["out"]).all(), "written in spite of the error"


@pytest.mark.parametrize("name", ["value", "locations", "weights"])
def test_errors_of_the_backward_function(name: str) -> None:
    given = backward_arrays()
    given[f"grad_{name}"] = given[f"grad_{name}"][:1]
    with pytest.raises(
        ValueError,
        match=rf"ms_deform_attn: grad_{name} \(.*\) has B = 1 in .*, but value has B = 2",
    ):
        _core.ms_deform_attn_backward(**given)
    given = backward_arrays()
    given["grad_out"] = given["grad_out"].astype("float64")
    with pytest.raises(
        TypeError, match="ms_deform_attn: grad_out must be of dtype float32, got float64"
    ):
        _core.ms_deform_attn_backward(**given)


def test_any_layout_of_a_dimension_of_one_is_a_valid_output() -> None:
    """Strides of dimensions of size one, or of arrays without elements, mean nothing."""
    out = np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (1, 1, 8), (0, 0, 4))
    point, weight = (
        np.full((1, 1, 1, 1, 1, 2), 0.5, np.float32),
        np.ones((1, 1, 1, 1, 1), np.float32),
    )
    _core.ms_deform_attn_forward(out, np.ones((1, 1, 1, 8), np.float32), [1, 1], point, weight)
    assert (out == 1).all()


def test_selecting_an_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="no CPU code named 'mmx' for this machine"):
        _core.select_cpu_instruction_set("mmx")
    assert _core.cpu_instruction_sets()[0] == "baseline"
    assert _core.cpu_instruction_set() in _core.cpu_instruction_sets()


@pytest.mark.parametrize("threads", [-1, 0, 1, 100_000, 2**31 - 1])
def test_any_number_of_threads(threads: int) -> None:
    plain, given = arrays(), arrays()
    _core.ms_deform_attn_forward(**plain)
    _core.ms_deform_attn_forward(**given, threads=threads)
    np.testing.assert_array_equal(given["out"], plain["out"])


LARGE = """
    import os, signal, threading
    import numpy as np
    from alignmask import _core

    value = np.random.default_rng(0).normal(size=(1, 64 * 64, 8, 32)).astype("float32")
    locations = np.full((1, 1000, 8, 1, 4, 2), 0.3, "float32")
    weights = np.ones((1, 1000, 8, 1, 4), "float32")

    def call(threads):
        out = np.empty((1, 1000, 256), "float32")
        _core.ms_deform_attn_forward(out, value, [64, 64], locations, weights, threads)
        return out
"""


def run_script(body: str) -> None:
    code = textwrap.dedent(LARGE) + textwrap.dedent(body)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_can_go_on() -> None:
    run_script("""
        expected = call(4)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a thread pool that did not survive the fork would wait for ever
            os._exit(0 if np.array_equal(call(4), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(call(4), expected)
    """)


def test_python_threads_may_call_at_once_with_far_too_many_workers() -> None:
    run_script("""
        expected, found = call(1), []
        threads = [threading.Thread(target=lambda: found.append(call(500))) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(found) == 4 and all(np.array_equal(out, expected) for out in found)
    """)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    """Offsets of 64 bits: 2.2e9 half-precision values (4.4 GB, of which only two images' pages are
    ever touched)."""
    S, D, B = 2**16, 64, 520
    value = np.zeros((B, S, 1, D), np.float16)  # zero pages: no memory until written
    value[0], value[-1] = 1, 2
    locations, weights = (
        np.full((B, 1, 1, 1, 1, 2), 0.5, np.float32),
        np.ones((B, 1, 1, 1, 1), np.float32),
    )
    out = np.empty((2, 1, D), np.float16)
    far = slice(None, None, B - 1)  # image 0 and the last: a stride of 2^31 elements
    assert value[far].strides[0] // 2 > 2**31
    _core.ms_deform_attn_forward(out, value[far], [256, 256], locations[far], weights[far])
    assert (out[0] == 1).all()
    assert (out[1] == 2).all()
