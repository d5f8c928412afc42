"""Passive T-Maze: remember the hint of the first step until the junction at the end of the corridor."""
