"""Grids of runs on one recipe, shared by any number of processes, and their tables."""

from alignmask._extras import require_train

require_train("alignmask.ablation")
