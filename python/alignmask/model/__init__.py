"""The model. Read in this order: config, alignmask, backbone, pixel_decoder, query_decoder, aligned_queries, heads,
postprocess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignmask.model.config import (
    AlignedQueryConfig,
    BackboneConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
)

if TYPE_CHECKING:
    from alignmask.model.alignmask import AlignMask, build_model
    from alignmask.model.heads import Prediction
    from alignmask.model.postprocess import Instances

__all__ = [
    "AlignMask", "AlignedQueryConfig", "BackboneConfig", "Instances", "ModelConfig", "PixelDecoderConfig", "Prediction",
    "QueryDecoderConfig", "build_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use: a config (and with it the command line's help) must not wait for timm.
    if name not in __all__:
        raise AttributeError(f"module 'alignmask.model' has no attribute {name!r}")
    from alignmask import require_train

    require_train("alignmask.model")
    from alignmask.model import alignmask, heads, postprocess

    for module in (alignmask, heads, postprocess):
        if name in vars(module):
            return vars(module)[name]
    raise AssertionError(name)
