"""The ops for NumPy arrays and whatever else speaks DLPack: read in place, and answered in kind."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def accepts_arrays(op: Function) -> Function:
    """Decorator: called with arrays in place of all tensors, `op` returns arrays of the kind of the
    first.

    Nothing is copied, but for NumPy arrays with negative strides, which torch cannot show. Kinds
    whose library has no `from_dlpack` are answered with torch tensors. No gradients.

    Raises:
        TypeError: Arrays beside torch tensors.
    """
    signature = inspect.signature(op)
    tensors = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.annotation in (Tensor, "Tensor")
    }

    @functools.wraps(op)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not any(map(_is_array, (*args, *kwargs.values()))):
            return op(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        arrays = {
            name: value for name, value in arguments.items() if name in tensors and _is_array(value)
        }
        if not arrays:  # but one where no tensor belongs, of which the op will say so
            return op(*args, **kwargs)
        (name, first), *_ = arrays.items()
        for other, value in arguments.items():
            if isinstance(value, Tensor):
                raise TypeError(
                    f"{op.__name__}: {name.split('_')[0]} must be a torch.Tensor, "
                    f"got {type(first).__name__}, as {other.split('_')[0]} is one"
                )
        with torch.no_grad():
            results = op(
                **arguments
                | {name: _tensor(op.__name__, name, array) for name, array in arrays.items()}
            )
        return (
            tuple(_like(first, r) for r in results)
            if isinstance(results, tuple)
            else _like(first, results)
        )

    return wrapper  # type: ignore[return-value]


def _is_array(value: Any) -> bool:
    return not isinstance(value, Tensor) and (
        isinstance(value, np.ndarray) or hasattr(value, "__dlpack__")
    )


def _tensor(op: str, name: str, array: Any) -> Tensor:
    try:
        if not isinstance(array, np.ndarray):
            return torch.from_dlpack(array)
        if any(stride < 0 for stride in array.strides):
            array = np.ascontiguousarray(array)
        with warnings.catch_warnings():  # the ops do not write to their arguments
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(array)
    except (
        TypeError,
        ValueError,
        BufferError,
        RuntimeError,
    ) as error:  # a dtype that torch does not know, no memory, ...
        raise TypeError(
            f"{op}: {name.split('_')[0]} cannot be read as a tensor: {error}"
        ) from error


def _like(array: Any, result: Tensor) -> Any:
    if isinstance(array, np.ndarray):
        return result.numpy()
    # Of the array API standard; CuPy's arrays have none.
    namespace = getattr(array, "__array_namespace__", None)
    library: Any = (
        namespace() if namespace else sys.modules.get(type(array).__module__.partition(".")[0])
    )
    return library.from_dlpack(result) if hasattr(library, "from_dlpack") else result
