"""Pages of results: the runs of a table, what they measured, and the files in results/."""
