"""One page that shows what a run learned: curves, verdict, comparison, and an episode to step through."""
