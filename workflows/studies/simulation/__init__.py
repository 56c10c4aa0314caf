"""The virtual engine: the same strategies on virtual machines, with virtual queues and real training."""
