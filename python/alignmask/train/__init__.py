"""Training: trainer, optimizer, checkpoint, log, dry_run."""

from alignmask import require_train

require_train("alignmask.train")
