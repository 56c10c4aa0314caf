"""One local training: task, loop, checkpoints, leases, deadline."""
