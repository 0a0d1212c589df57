"""The losses: matcher, label_assignment, criterion; points is how masks are sampled."""

from alignmask._extras import require_train

require_train("alignmask.loss")

from alignmask.loss.criterion import Criterion, Losses  # noqa: E402

__all__ = ["Criterion", "Losses"]
