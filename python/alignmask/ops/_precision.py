"""Parts of a model that compute in full precision whatever autocast says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def no_autocast(like: Tensor | None) -> AbstractContextManager[None]:
    """A context without autocast on the device of `like`.

    Meta tensors have no autocast to switch off; what is no tensor is for the op's own check to
    refuse.
    """
    if not isinstance(like, Tensor) or like.device.type == "meta":
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def in_full_precision(function: Function) -> Function:
    """Decorator: `function` runs without autocast on the device of its first argument."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with no_autocast(next(iter((*args, *kwargs.values())), None)):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]
