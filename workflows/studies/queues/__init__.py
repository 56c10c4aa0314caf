"""Waits in batch queues: their records, where they come from, and what they show."""
