"""Data sets before training: checked, mended, described, split, cut into tiles, converted."""

from __future__ import annotations

from alignmask._extras import require_train

require_train("alignmask.curation")
