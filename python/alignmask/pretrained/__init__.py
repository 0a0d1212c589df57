"""Other projects' weights: Mask2Former's checkpoints (detectron2) and Hugging Face's folders, in and out.

Nothing in a file is executed. Read in this order: read, names, configs, write.
"""

from alignmask._extras import require_train

require_train("alignmask.pretrained")

from alignmask.pretrained.read import (  # noqa: E402
    Pretrained,
    Report,
    Source,
    from_huggingface,
    from_mask2former,
    initialise,
    initialise_from,
    read,
)

__all__ = [
    "Pretrained",
    "Report",
    "Source",
    "from_huggingface",
    "from_mask2former",
    "initialise",
    "initialise_from",
    "read",
]
