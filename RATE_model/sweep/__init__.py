"""Run a command with several flag values and seeds, on this machine or a SLURM cluster; see `__main__`."""
