"""Datasets: the chemistry tasks, their records and metrics, and the partition of records over sites.

This package does not depend on campaigns, machines or Parsl, and importing its modules does no work.
"""
