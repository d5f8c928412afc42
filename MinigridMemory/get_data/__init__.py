"""Collecting the data of Minigrid-Memory from the command line."""
