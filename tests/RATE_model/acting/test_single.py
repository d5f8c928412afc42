"""Single environments on the shared base: seeds, ends, and arguments out of range."""

import numpy as np
import pytest

from RATE_model.acting.single import SeededEnv
from RATE_model.errors import UserError


class Countdown(SeededEnv):
    """Shows a number that the seed draws, and ends when as many steps are taken."""

    seeds_below = drawn_below = 2**5

    def __init__(self, max_steps=4, render_mode=None):
        super().__init__("Countdown", (1,), 2, max_steps=max_steps, render_mode=render_mode)

    def render(self):
        return np.zeros((8, 8, 3), dtype=np.uint8)

    def _start(self, seed, options):
        self._observation = np.array([options.get("left", seed)], dtype=np.uint8)

    def _advance(self, action):
        self._observation = self._observation - 1
        self._terminated = bool(self._observation[0] == 0)
        return float(action)

    def _info(self):
        return {"steps": self._steps}


def test_a_finished_episode_stays_as_it_is():
    env = Countdown()
    assert env.step(1)[1:] == (0.0, False, True, {"steps": 0}), "nothing happens before the first reset"
    for left, ends in ((2, [(False, False), (True, False)]), (9, [(False, False)] * 3 + [(False, True)])):
        observation, _ = env.reset(seed=7, options={"left": left})
        assert observation == left
        assert [env.step(1)[2:4] for _ in ends] == ends
        again = env.step(1)
        assert again[0] == left - len(ends) and again[1:] == (0.0, *ends[-1], {"steps": len(ends)})


def test_seeds_decide_and_stay_in_range():
    env = Countdown()
    assert env.reset(seed=9)[0] == 9
    drawn = [int(env.reset()[0][0]) for _ in range(20)]
    env.reset(seed=9)
    assert drawn == [int(env.reset()[0][0]) for _ in range(20)] and len(set(drawn)) > 5
    for seed in (-1, 2**5):
        with pytest.raises(ValueError, match=rf"between 0 and 2\*\*5 - 1, got {seed}"):
            env.reset(seed=seed)
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        env.step(2)


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="Countdown: max_steps is 0"):
        Countdown(0)
    with pytest.raises(UserError, match="Countdown: render_mode is 'human'; it must be 'rgb_array' or None"):
        Countdown(render_mode="human")
