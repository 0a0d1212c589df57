"""Parts of a model that compute in full precision whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(like: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the device of `like`.

    Meta tensors have no autocast to switch off; what is no tensor is for the op's own check to refuse.
    """
    if not isinstance(like, Tensor) or like.device.type == "meta":
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)
