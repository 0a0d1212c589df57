"""What `ms_deform_attn` refuses, and how it says so; shapes as in test_ms_deform_attn.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alignmask import ops
from tests.ops import cases
from tests.ops.errors import Errors

OP = "ms_deform_attn"

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


ERRORS = Errors()
wrong = ERRORS.expects


@wrong(TypeError, "value must be a torch.Tensor, got ndarray")
def value_is_no_tensor(arguments: list) -> None:
    arguments[0] = arguments[0].numpy()


@wrong(TypeError, "value must be of dtype .*, got int64")
def value_is_integer(arguments: list) -> None:
    arguments[0] = arguments[0].long()


@wrong(TypeError, "weights .*float64")
def weights_of_another_dtype(arguments: list) -> None:
    arguments[3] = arguments[3].double()


@wrong(TypeError, "locations .*float16")
def locations_of_less_precision(arguments: list) -> None:
    arguments[2] = arguments[2].half()


@wrong(ValueError, r"value must have the 4 dimensions BSND, got \(2, 26, 27\)")
def value_is_flat(arguments: list) -> None:
    arguments[0] = arguments[0].flatten(2)


@wrong(ValueError, r"locations must have the 6 dimensions BQNLP2, got \(2, 5, 3, 3, 6\)")
def locations_are_flat(arguments: list) -> None:
    arguments[2] = arguments[2].flatten(4)


@wrong(ValueError, r"locations \(BQNLP2\) has B = 1 in .*, but value has B = 2")
def images_differ(arguments: list) -> None:
    arguments[2] = arguments[2][:1]


@wrong(ValueError, r"locations \(BQNLP2\) must have size 2 there, got \(2, 5, 3, 3, 3, 3\)")
def locations_have_three_coordinates(arguments: list) -> None:
    arguments[2] = torch.cat([arguments[2], arguments[2][..., :1]], -1)


@wrong(ValueError, r"weights \(BQNLP\) has P = 2 in .*, but locations has P = 3")
def points_differ(arguments: list) -> None:
    arguments[3] = arguments[3][..., :2]


@wrong(ValueError, r"level_shapes lists 2 levels, but locations has L = 3")
def a_level_is_missing(arguments: list) -> None:
    arguments[1] = arguments[1][:2]


@wrong(
    ValueError,
    r"level_shapes \[\(3, 5\), \(1, 7\), \(4, 2\)\] adds up to 30 tokens, but value has S = 26",
)
def tokens_do_not_add_up(arguments: list) -> None:
    arguments[1] = [(3, 5), (1, 7), (4, 2)]


@wrong(ValueError, r"level_shapes\[1\] = \(-1, -7\) is negative")
def a_level_is_negative(arguments: list) -> None:
    arguments[1] = [(3, 5), (-1, -7), (4, 1)]


@wrong(TypeError, r"level_shapes\[0\] must be a pair of ints \(h, w\), got \(3, 5, 1\)")
def a_level_has_three_sizes(arguments: list) -> None:
    arguments[1] = [(3, 5, 1), (7,), (4, 1)]


@wrong(TypeError, r"level_shapes\[2\] must be a pair of ints \(h, w\), got \(4.0, 1\)")
def a_level_is_no_integer(arguments: list) -> None:
    arguments[1] = [(3, 5), (1, 7), (4.0, 1)]


@wrong(TypeError, r"level_shapes must be a sequence of pairs of ints \(h, w\), got Tensor")
def levels_are_a_tensor(arguments: list) -> None:
    arguments[1] = torch.tensor(arguments[1])


@wrong(
    (ValueError, RuntimeError),
    r"ms_deform_attn: weights is on meta, but .* is on cpu|device meta|fake",
)
def devices_differ(arguments: list) -> None:
    arguments[3] = arguments[3].to("meta")


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_the_argument(implementation: str, name: str) -> None:
    error, message, change = ERRORS[name]
    arguments = list(cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"]))
    change(arguments)
    with pytest.raises(error, match=message):
        ops.ms_deform_attn(*arguments)
