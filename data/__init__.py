"""Datasets: the chemistry tasks, their records and metrics, and how records are dealt to sites.

Nothing here knows of campaigns, machines or Parsl, and importing a module of this package does no work.
"""
