"""The evaluation protocol: seeds, lengths, success, delay, names."""

import numpy as np
import pytest
import torch

from RATE_model.acting import evaluation
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import BatchActor
from RATE_model.errors import UserError
from tests.small_models import small_model
from tests.tmaze_runs import success_by_length
from TMaze_new.TMaze_new_src.env import EVALUATION_SEEDS, SPEC, UP, expert_actions, goals_of_seeds
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT
from TMaze_new.TMaze_new_src.evaluate import MAX_EPISODES, evaluation_seeds, published_keys


@pytest.mark.parametrize("episodes", [2, 4, 7, 20, 100, 101, 500, MAX_EPISODES])
def test_as_many_episodes_go_up_as_down(episodes):
    seeds = evaluation_seeds(episodes)
    goals = goals_of_seeds(seeds)
    assert len(seeds) == episodes and goals.sum() == episodes % 2 and (np.diff(seeds) >= 0).all()
    assert 0 <= seeds.min() and seeds.max() < 10_000  # training begins at 1,000,000
    assert len(set(seeds.tolist())) >= episodes - 1  # seed 3 is twice in the published list


def test_hundred_episodes_use_the_published_seeds():
    assert evaluation_seeds(100).tolist() == sorted(EVALUATION_SEEDS)
    assert set(EVALUATION_SEEDS) <= set(evaluation_seeds(200).tolist())


def test_too_many_episodes_are_refused():
    with pytest.raises(ValueError, match="9993 episodes"):
        evaluation_seeds(MAX_EPISODES + 1)
    for count in (1, MAX_EPISODES + 1):
        with pytest.raises(UserError, match=f"--episodes {count}: must be at least 2 and at most 9992"):
            ENVIRONMENT.check_episodes(episodes=count)


class Expert(BatchActor):
    """Stands in for `Actor` and remembers the hint."""

    made: list[dict] = []

    def __init__(self, model, batch_size: int, target_return: float, **options) -> None:
        self.hints, self.late = None, 0
        self.made.append(options | {"batch_size": batch_size, "target_return": target_return})

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        if self.hints is None:
            self.hints = observations[:, 1].copy()
        return self.decide(observations)

    def decide(self, observations: np.ndarray) -> np.ndarray:
        return expert_actions(observations, self.hints)

    def keep(self, rows: np.ndarray) -> None:
        self.hints = self.hints[rows]


class Optimist(Expert):
    """Always goes up."""

    def decide(self, observations: np.ndarray) -> np.ndarray:
        return expert_actions(observations, np.ones(len(observations)))


class Waverer(Expert):
    """Bumps into the wall on the first step."""

    first = True

    def decide(self, observations: np.ndarray) -> np.ndarray:
        first, self.first = self.first, False
        return np.full(len(observations), UP) if first else expert_actions(observations, self.hints)


@pytest.fixture
def acting(monkeypatch):
    def replace(actor: type[Expert]) -> None:
        actor.made = []
        monkeypatch.setattr(evaluation, "Actor", actor)

    return replace


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_an_expert_succeeds_without_delay_at_every_length(acting, mode):
    acting(Expert)
    results = success_by_length(small_model(mode, spec=SPEC), [3, 9, 30, 90, 91], episodes=10)
    assert results == {length: {"success_rate": 1.0, "mean_delay": 0.0} for length in (3, 9, 30, 90, 91)}
    assert sum(options["batch_size"] for options in Expert.made) == 50


def test_half_of_the_episodes_go_up(acting):
    acting(Optimist)
    results = success_by_length(small_model(spec=SPEC), [9, 30], episodes=10)
    assert results == {length: {"success_rate": 0.5, "mean_delay": 0.0} for length in (9, 30)}


def test_episode_length_equals_its_number_of_steps(acting):
    """One lost step can be made up, as T - 1 of T steps are needed."""
    acting(Waverer)
    assert success_by_length(small_model(spec=SPEC), [9], episodes=4)[9] == {"success_rate": 1.0, "mean_delay": 1.0}


def test_the_options_reach_the_actor(acting):
    acting(Expert)
    options = dict(transform_memory=knock_out_memory, precision="bf16")
    success_by_length(small_model(spec=SPEC), [9], episodes=2, target_return=2.0, slide=3, **options)
    (made,) = Expert.made
    expected = options | {"batch_size": 2, "target_return": 2.0, "slide": 3}
    assert expected.items() <= made.items()


@pytest.mark.parametrize("mode", ["RATE", "DTXL"])
def test_result_of_a_length_does_not_depend_on_others(mode):
    """With a real, untrained model."""
    model = small_model(mode, spec=SPEC, seed=3)
    together = success_by_length(model, [9, 4, 20], episodes=6)
    for length in (9, 4, 20):
        assert success_by_length(model, [length], episodes=6) == {length: together[length]}


def test_torch_random_state_is_unchanged():
    model = small_model(spec=SPEC)
    before = torch.get_rng_state()
    success_by_length(model, [9], episodes=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_published_metric_names():
    results = {n: {"success_rate": n / 1000, "mean_delay": float(n)} for n in (9, 30, 60, 90, 120, 150, 270, 480, 900)}
    expected = {f"Success_rate_T_{n}": n / 1000 for n in results}
    for segments in (1, 2, 3, 5, 9, 16, 30):
        expected[f"Success_rate_S_{segments}"] = segments * 30 / 1000
        expected[f"Mean_D[time]_S_{segments}"] = segments * 30.0
    assert published_keys(results) == expected
