"""Real batch schedulers for tests: Slurm clusters on this machine, and the PBS commands over them."""
