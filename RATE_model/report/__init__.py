"""An HTML page about runs: curves, verdict, comparison, and an episode to step through."""
