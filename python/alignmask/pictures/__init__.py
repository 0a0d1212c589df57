"""Pictures of predictions and of runs."""

from alignmask._extras import require_train

require_train("alignmask.pictures")
