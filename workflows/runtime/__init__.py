"""Parsl and its processes for one run."""
