"""Estimate the memory of a training, and choose the fastest way to spread it that fits."""
