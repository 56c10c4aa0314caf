"""A round as a graph of Parsl apps, and the events that drive the next one."""
