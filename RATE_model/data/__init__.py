"""Trajectory files, the windows that training draws from them, and foreign formats.

files -> a selector of `selection` -> `split_episodes` -> `dataset.WindowDataset` -> `loader.make_loader` -> `Batch`
"""
