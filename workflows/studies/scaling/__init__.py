"""Throughput against nodes and devices: the points of a study, their measurement, table and figure."""
