"""Vector environments that freeze finished episodes: in this process, in threads, in processes."""

from functools import partial

import gymnasium
import numpy as np
import pytest

from RATE_model.acting.vector import FrozenVectorEnv, step_limit
from RATE_model.errors import UserError
from tests.RATE_model.own.toys import STEPS, Recall

SPACES = Recall().observation_space, Recall().action_space
KINDS = {"plain": {}, "threads": {"threads": 3}, "processes": {"workers": 2, "spaces": SPACES, "max_steps": 5}}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_single_environments(kind):
    rows = FrozenVectorEnv([partial(Recall)] * 5, **KINDS[kind])
    singles = [Recall() for _ in range(5)]
    observations, infos = rows.reset(seed=[3, 1, 4, 1, 5])
    for row, (single, seed) in enumerate(zip(singles, (3, 1, 4, 1, 5), strict=True)):
        observation, info = single.reset(seed=seed)
        np.testing.assert_array_equal(observations[row], observation)
        assert infos["bit"][row] == info["bit"]
    for _ in range(STEPS):
        actions = np.arange(5) % 2
        observations, rewards, terminated, truncated, infos = rows.step(actions)
        for row, single in enumerate(singles):
            expected = single.step(int(actions[row]))
            np.testing.assert_array_equal(observations[row], expected[0])
            assert (rewards[row], terminated[row], truncated[row]) == expected[1:4]
    assert terminated.all() and not truncated.any()
    frozen = rows.step(np.ones(5, dtype=int))
    np.testing.assert_array_equal(frozen[0], observations)
    assert frozen[1].tolist() == [0] * 5 and frozen[2].all()
    mask = np.array([True, False, False, False, True])
    _, infos = rows.reset(seed=np.arange(5), options={"reset_mask": mask})
    assert rows.step(np.zeros(5, dtype=int))[2].tolist() == [False, True, True, True, False]
    rows.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        rows.step(np.zeros(5, dtype=int))


def test_wrong_calls_are_refused():
    rows = FrozenVectorEnv([Recall] * 2)
    with pytest.raises(ValueError, match="3 seeds for 2"):
        rows.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="between 0 and"):
        rows.reset(seed=[1, -2])
    rows.reset(seed=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        rows.step(np.array([0, 2]))


def test_an_error_in_a_process_is_raised():
    rows = FrozenVectorEnv([partial(Recall, size="two")] * 2, **KINDS["processes"], name="Recall")
    with pytest.raises(RuntimeError, match="in a worker process of Recall"):
        rows.reset(seed=0)


def test_the_smallest_step_limit_wins():
    assert step_limit(Recall()) == STEPS + 1 and step_limit(gymnasium.make("CartPole-v1")) == 500
    with pytest.raises(UserError, match="has no step limit"):
        step_limit(gymnasium.make("CartPole-v1").unwrapped.__class__())
