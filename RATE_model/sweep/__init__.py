"""Many training commands from one: values of flags times seeds, here or on a SLURM cluster; see `__main__`."""
