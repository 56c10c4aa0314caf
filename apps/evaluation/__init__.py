"""Losses of a model on the test set: in one process, or dealt over ranks."""
