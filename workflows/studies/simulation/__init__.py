"""The virtual engine: the same strategies at simulated facilities, with modelled queues and real training."""
