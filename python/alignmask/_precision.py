"""Parts of a model that compute in full precision whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context without autocast on `device`; meta tensors have none to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
