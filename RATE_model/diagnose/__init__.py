"""Why a run plays as it does: what its memory knows, whether it copies its past actions, and where imitation fails."""
