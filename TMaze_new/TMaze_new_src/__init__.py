"""The T-Maze environment, its data, and the scripts that train and evaluate on it."""
