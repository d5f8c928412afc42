"""Vector environments of arrays: what a subclass need not care about."""

import numpy as np
import pytest

from RATE_model.acting.arrays import ArrayVectorEnv
from RATE_model.errors import UserError


class Walks(ArrayVectorEnv):
    """The first of three steps to the right ends an episode."""

    def __init__(self, num_envs: int = 3, max_steps: int = 4) -> None:
        super().__init__(num_envs, [0.0], 2, max_steps=max_steps, name="Walks")
        self.place = np.zeros(num_envs, dtype=np.int64)

    def _begin(self, rows, seeds, options):
        self.place[rows] = options.get("place", 0)

    def _move(self, actions, running):
        self.place += np.where(running, actions, 0)
        return np.where(running & (self.place >= 3), 1.0, 0.0), self.place >= 3

    def _observe(self):
        return (self.place[:, None] / 3).astype(np.float32)

    def _info(self):
        return {"place": self.place.copy()}


def test_finished_episodes_stay_frozen_until_they_are_reset():
    walks = Walks()
    with pytest.raises(ValueError, match="actions must be"):
        walks.step(np.array([0, 2, 0]))
    *_, truncated, _ = walks.step(np.ones(3, int))
    assert truncated.all(), "nothing moves before the first reset"
    walks.reset(seed=0)
    for _ in range(3):
        _, rewards, terminated, truncated, _ = walks.step(np.array([1, 0, 1]))
    assert rewards.tolist() == [1, 0, 1] and terminated.tolist() == [True, False, True] and not truncated.any()
    seen, rewards, terminated, truncated, info = walks.step(np.ones(3, int))
    assert rewards.tolist() == [0, 0, 0] and truncated.tolist() == [False, True, False], "at the step limit"
    assert info["place"].tolist() == [3, 1, 3] and seen[:, 0].tolist() == pytest.approx([1, 1 / 3, 1])
    seen, _ = walks.reset(seed=1, options={"reset_mask": np.array([True, False, False])})
    assert seen[:, 0].tolist() == pytest.approx([0, 1 / 3, 1])
    assert walks.step(np.ones(3, int))[4]["place"].tolist() == [1, 1, 3]


def test_a_step_limit_below_one_is_an_error():
    with pytest.raises(UserError, match="Walks: max_steps is 0; it must be at least 1"):
        Walks(max_steps=0)
