"""AlignMask: task-aligned mask queries for instance segmentation.

    import alignmask

    predictor = alignmask.load("runs/mine")
    found = predictor.predict("photo.jpg", threshold=0.5)

Every name below is imported on first use, so that `import alignmask` is quick and needs neither
torch nor an extra. `alignmask.ops` needs torch and NumPy alone; `Config` and `recipes` need
nothing; all others need the extra `[train]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignmask._extras import require_train
from alignmask._version import __version__

if TYPE_CHECKING:
    from alignmask import ops, recipes
    from alignmask._calibrating import calibrate
    from alignmask._exporting import export
    from alignmask._verbs import analyze, draw, evaluate, train
    from alignmask.config import Config
    from alignmask.loading import from_huggingface, from_mask2former, load
    from alignmask.model import Instances
    from alignmask.predictor import Predictor

__all__ = [
    "Config",
    "Instances",
    "Predictor",
    "__version__",
    "analyze",
    "calibrate",
    "draw",
    "evaluate",
    "export",
    "from_huggingface",
    "from_mask2former",
    "load",
    "ops",
    "recipes",
    "train",
]

_WITHOUT_EXTRA = {"Config": "config", "ops": "ops", "recipes": "recipes"}
_HOMES = {
    "Instances": "model",
    "Predictor": "predictor",
    "analyze": "_verbs",
    "calibrate": "_calibrating",
    "draw": "_verbs",
    "evaluate": "_verbs",
    "export": "_exporting",
    "from_huggingface": "loading",
    "from_mask2former": "loading",
    "load": "loading",
    "train": "_verbs",
    **_WITHOUT_EXTRA,
}
"""The module that each name comes from."""


if not TYPE_CHECKING:  # type checkers would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'alignmask' has no attribute {name!r}")
        if name not in _WITHOUT_EXTRA:
            require_train(f"alignmask.{name}")
        module = importlib.import_module(f"alignmask.{_HOMES[name]}")
        value = module if name == _HOMES[name] else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
