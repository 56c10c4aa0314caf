"""Records of a run: the journal, the run directory, and everything derived from them."""
