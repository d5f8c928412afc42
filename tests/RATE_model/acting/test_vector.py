"""Arguments of vector environments."""

import subprocess
import sys

import gymnasium
import pytest
from gymnasium.vector import VectorEnv

from RATE_model.acting.vector import discrete_actions, episode_seeds, reset_mask


class Environments(VectorEnv):
    num_envs = 3
    single_action_space = gymnasium.spaces.Discrete(4)

    def reset(self, **arguments):
        raise AssertionError("asking for the seeds of a reset must not reset")


def test_every_environment_gets_a_seed():
    environments = Environments()
    assert list(episode_seeds(environments, 5)) == [5, 6, 7]
    assert list(episode_seeds(environments, [9, 1, 4])) == [9, 1, 4]
    drawn = episode_seeds(environments, None, below=2)
    assert len(drawn) == 3 and set(drawn) <= {0, 1}
    for bad in ([1, 2], [1, 2, 3, 4], []):
        with pytest.raises(ValueError, match=f"{len(bad)} seeds for 3 environments"):
            episode_seeds(environments, bad)
    for negative in (-1, [-1, 0, 2]):
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            episode_seeds(environments, negative)


def test_drawn_seeds_depend_on_the_last_given_seed():
    def drawn(seed):
        environments = Environments()
        episode_seeds(environments, seed)
        return [int(number) for _ in range(2) for number in episode_seeds(environments, None)]

    assert drawn(5) == drawn([5, 0, 0]) != drawn(6)
    assert len(set(drawn(5))) == 6


def test_a_mask_is_one_bool_per_environment():
    environments = Environments()
    assert reset_mask(environments, None).tolist() == reset_mask(environments, {"cue": 1}).tolist() == [True] * 3
    assert reset_mask(environments, {"reset_mask": [True, False, True]}).tolist() == [True, False, True]
    for bad in ([1, 0, 1], [True, False], True, [[True] * 3]):
        with pytest.raises(ValueError, match=r"reset_mask must be bool of shape \(3,\)"):
            reset_mask(environments, {"reset_mask": bad})


def test_actions_are_checked():
    environments = Environments()
    assert discrete_actions(environments, [0, 3, 1]).tolist() == [0, 3, 1]
    for bad in ([0, 1], [0.0, 1.0, 2.0], 1, [[0, 1, 2]]):
        with pytest.raises(ValueError, match=r"actions must be integers of shape \(3,\)"):
            discrete_actions(environments, bad)
    for bad in ([0, 4, 0], [0, 0, -1]):
        with pytest.raises(ValueError, match="actions must be between 0 and 3, got"):
            discrete_actions(environments, bad)


def test_playing_processes_do_not_import_torch():
    code = "import sys, RATE_model.acting.vector, RATE_model.system.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
