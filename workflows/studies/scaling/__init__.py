"""Throughput against nodes and devices: what is measured, how, and how it is shown."""
