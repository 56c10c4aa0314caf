"""Real batch schedulers for tests: Slurm clusters on this machine, and PBS commands on top of them."""
