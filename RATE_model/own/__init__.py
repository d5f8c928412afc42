"""`train` and `evaluate` for the user's own data and environments, which need no folder."""
