"""The model. Read in this order: alignmask, backbone, pixel_decoder, query_decoder,
aligned_queries, heads, layers, postprocess; its settings are in `alignmask.config`."""

from alignmask._extras import require_train

require_train("alignmask.model")

from alignmask.model.alignmask import AlignMask, build_model  # noqa: E402
from alignmask.model.heads import Prediction  # noqa: E402
from alignmask.model.postprocess import Instances  # noqa: E402

__all__ = ["AlignMask", "Instances", "Prediction", "build_model"]
