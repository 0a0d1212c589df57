"""Predictions for image files: which files are read, and what is written for each."""

from alignmask._extras import require_train

require_train("alignmask.predicting")
