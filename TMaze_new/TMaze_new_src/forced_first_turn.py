"""A player with a forced first turn."""

import numpy as np

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor
from TMaze_new.TMaze_new_src.tasks import first_turns


class ForcedFirstTurn:
    """An actor with forced first actions: up in a row, down in its twin. See the recall task."""

    def __init__(self, actor: BatchActor) -> None:
        self._actor, self._begins = actor, True

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """As `Actor.act`."""
        if not self._begins:
            return self._actor.act(observations, rewards)
        self._begins, actions = False, first_turns(len(observations))
        if isinstance(self._actor, Actor):  # other actors do not remember actions
            self._actor.observe(observations, rewards)
            self._actor.take(actions)
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """As `Actor.keep`."""
        self._actor.keep(rows)
