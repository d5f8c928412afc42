"""Trajectory files, the windows that training draws from them, and foreign formats."""
