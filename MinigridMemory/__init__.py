"""Minigrid-Memory: see an object at the start of a corridor, then choose the side that shows it at the end."""
