"""Tensors as files: the store, streams over it, sums, and the checks of an update."""
