"""Who said it: canonical JSON, keys, signatures, and the hash chain of a journal."""
