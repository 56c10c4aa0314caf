"""Waits in batch queues: their records, the sources of these, statistics and figures."""
