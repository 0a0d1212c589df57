"""Other projects' weights: Mask2Former's checkpoints (detectron2) and Hugging Face's folders, for
reading and writing.

Nothing in a file is executed. Read in this order: read, names, configs, write.
"""

from alignmask._extras import require_train

require_train("alignmask.pretrained")
