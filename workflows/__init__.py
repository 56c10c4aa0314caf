"""Runnable files, one per user story, and what only they need."""
