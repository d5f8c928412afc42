"""The Memory Maze environment, its experts and its data, and the scripts that train and evaluate on it."""
