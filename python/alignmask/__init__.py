"""AlignMask: task-aligned mask queries for instance segmentation.

`alignmask.ops` needs torch and numpy alone. The toolkit (`alignmask.model`, `alignmask.recipes`, `alignmask.load`, ...) is
imported on first use and needs the extra `[train]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignmask._extras import require_train
from alignmask._version import __version__

if TYPE_CHECKING:
    from alignmask import ops as ops
    from alignmask.predictor import load

_LAZY_MODULES = (
    "ablation",
    "analysis",
    "checkpoint",
    "config",
    "data",
    "evaluation",
    "exporting",
    "integrations",
    "loss",
    "model",
    "ops",
    "pictures",
    "predictor",
    "pretrained",
    "recipes",
    "training",
)

__all__ = ["__version__", "load", "require_train", *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    if name == "load":
        require_train("alignmask.load")
        return importlib.import_module("alignmask.predictor").load
    if name in _LAZY_MODULES:
        return importlib.import_module(f"alignmask.{name}")
    raise AttributeError(f"module 'alignmask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
