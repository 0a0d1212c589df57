"""A trained model as one file that runs without this toolkit."""

from alignmask._extras import require_train

require_train("alignmask.exporting")
