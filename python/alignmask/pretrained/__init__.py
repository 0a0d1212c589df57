"""Other projects' weights: Mask2Former's checkpoints (detectron2) and Hugging Face's folders, in and out.

Nothing in a file is executed. Read in this order: read, names, configs, write.
"""

from alignmask._extras import require_train

require_train("alignmask.pretrained")
