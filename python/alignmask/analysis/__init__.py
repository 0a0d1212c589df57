"""How well scores rank masks (Table 2, Fig. 4), and pictures of results."""
