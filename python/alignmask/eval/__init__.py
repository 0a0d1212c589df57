"""COCO evaluation of models and of results files."""

from alignmask import require_train

require_train("alignmask.eval")
