"""The losses: matcher, label_assignment, criterion; points samples masks."""

from alignmask._extras import require_train

require_train("alignmask.loss")

from alignmask.loss.criterion import Criterion, Losses, LossTerms  # noqa: E402

__all__ = ["Criterion", "LossTerms", "Losses"]
