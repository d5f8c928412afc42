"""Trajectory files, training windows and the import of other formats.

files -> a selector of `selection` -> `split_episodes` -> `dataset.WindowDataset` -> `loader.make_loader` -> `Batch`
"""
