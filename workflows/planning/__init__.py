"""Campaign files, their schema, and the checked plan of a run."""
