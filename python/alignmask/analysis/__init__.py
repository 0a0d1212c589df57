"""How well scores rank masks (Table 2, Fig. 4), and pictures of results."""

from alignmask import require_train

require_train("alignmask.analysis")
