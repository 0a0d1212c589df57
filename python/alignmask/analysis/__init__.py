"""How well scores rank masks: several models side by side (Table 2, Fig. 4), as tables and as a
page."""

from alignmask._extras import require_train

require_train("alignmask.analysis")
