"""The Minigrid-Memory environment, its expert and its data, and the scripts that train and evaluate on it."""
