"""Minigrid-Memory: see an object at the start of a corridor, choose the side that shows the same one at its end."""
