"""Training: trainer, callbacks, optimizer, precision, log, signals, dry_run."""

from alignmask._extras import require_train

require_train("alignmask.training")
