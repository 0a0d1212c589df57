"""COCO evaluation of models and of results files."""

from alignmask._extras import require_train

require_train("alignmask.evaluation")
