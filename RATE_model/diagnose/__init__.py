"""Explain how a run's agent plays: what its memory knows, how much it copies past actions, where imitation fails."""
