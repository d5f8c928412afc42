"""A player with a forced first turn."""

import numpy as np

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import BatchActor, PlayerWrapper
from TMaze_new.TMaze_new_src.tasks import first_turns


class ForcedFirstTurn(PlayerWrapper):
    """An actor with forced first actions: up in a row, down in its twin. See the recall task."""

    def __init__(self, player: BatchActor) -> None:
        super().__init__(player)
        self._begins = True

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """As `Actor.act`."""
        if not self._begins:
            return self._player.act(observations, rewards)
        self._begins, actions = False, first_turns(len(observations))
        if isinstance(self._player, Actor):  # other actors do not remember actions
            self._player.observe(observations, rewards)
            self._player.take(actions)
        return actions
