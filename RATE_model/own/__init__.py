"""Data and environments of the user's own, without a folder of their own: what `train` and `evaluate` are made of."""
