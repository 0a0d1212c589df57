"""Checks that the packages of an optional extra are installed."""

from __future__ import annotations

import functools
import importlib.util

_TRAIN_MODULES = (
    "torchvision",
    "timm",
    "accelerate",
    "pycocotools",
    "hotcoco",
    "scipy",
    "safetensors",
    "tyro",
    "rich",
    "matplotlib",
    "tensorboard",
    "PIL",
    "dacite",
    "yaml",
    "psutil",
)
_ANALYZE_MODULES = ("bokeh", "jinja2")


@functools.cache
def _missing(modules: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(module for module in modules if importlib.util.find_spec(module) is None)


def require_train(feature: str) -> None:
    """Check that the packages of the extra `[train]` are installed.

    Args:
        feature: What the caller is about to do, for the message, e.g. `"alignmask.model"`.

    Raises:
        ImportError: One sentence that names the feature, the missing packages and the command that
            installs them.
    """
    _require(feature, _TRAIN_MODULES, "train")


def require_analyze(feature: str) -> None:
    """Check that the packages of the extra `[analyze]`, which adds to `[train]`, are installed; see
    `require_train`."""
    _require(feature, _ANALYZE_MODULES, "analyze")


def require_supervision(feature: str) -> None:
    """Check that the package of the extra `[supervision]` is installed; see `require_train`."""
    _require(feature, ("supervision",), "supervision")


def require_video(feature: str) -> None:
    """Check that the package of the extra `[video]`, which adds to `[train]`, is installed; see
    `require_train`."""
    _require(feature, ("av",), "video")


def _require(feature: str, modules: tuple[str, ...], extra: str) -> None:
    if missing := _missing(modules):
        raise ImportError(
            f"{feature} needs {', '.join(missing)}: install them with `pip install '.[{extra}]'` "
            "in AlignMask's folder."
        )
