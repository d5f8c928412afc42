"""Rollouts: rows that finish early, time limits, the model's mode, unsuitable environments."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import (
    PlayerWrapper,
    error_entry,
    evaluating,
    group_cases,
    mean_and_error,
    rollout,
    rollout_alternating,
)
from tests.small_models import K, small_model


class Countdown(VectorEnv):
    """Row b ends after `lengths[b]` steps. Observations and rewards depend on its seed, the time and its actions."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, lengths: list[int], *, truncate: bool = False) -> None:
        self.num_envs, self.lengths, self.truncate = len(lengths), np.array(lengths), truncate

    def reset(self, *, seed: np.ndarray, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.time, self.state, self.options = 0, np.asarray(seed, dtype=np.float64), options
        self.history: list[np.ndarray] = []
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.stack([np.sin(self.state * k + self.time) for k in range(1, 5)], axis=1).astype(np.float32)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        running = self.time < self.lengths
        self.history.append(actions.copy())
        self.time += 1
        self.state = np.where(running, self.state + 0.7 * actions, self.state)
        rewards = np.where(running, np.cos(self.state), 100.0)  # rewards after the end must not count
        ended, never = self.time >= self.lengths, np.zeros(self.num_envs, dtype=bool)
        return (self.observe(), rewards, *((never, ended) if self.truncate else (ended, never)), {})


class CountingActor(Actor):
    """Records the number of rows of every step."""

    def act(self, *arguments) -> np.ndarray:
        self.rows = [*getattr(self, "rows", []), self.batch_size]
        return super().act(*arguments)


@pytest.mark.parametrize("truncate", [False, True])
def test_finished_rows_cost_and_change_nothing(truncate):
    model = small_model()
    lengths, seeds = [3, 2 * K, 3 * K + 1, K, 3, 1], np.arange(6)
    actor, mazes = CountingActor(model, 6, 1.0), Countdown(lengths, truncate=truncate)
    together = rollout(actor, mazes, seeds=seeds, max_steps=100)
    assert together.lengths.tolist() == lengths
    assert actor.rows == [sum(length > step for length in lengths) for step in range(3 * K + 1)]
    for row, length in enumerate(lengths):
        own = Countdown([length])
        alone = rollout(Actor(model, 1, 1.0), own, seeds=seeds[row : row + 1], max_steps=100)
        acted = [step[row] for step in mazes.history[:length]]
        assert acted == [step[0] for step in own.history]
        np.testing.assert_allclose(together.returns[row], alone.returns[0])
        np.testing.assert_allclose(together.last_rewards[row], alone.last_rewards[0])
        assert len(own.history) == length == alone.lengths[0]
    assert len(set(np.concatenate(mazes.history).tolist())) > 1 and (together.returns < 100).all()


class Overflowing(Actor):
    """Its numbers are not finite from the fourth step on."""

    @torch.inference_mode()
    def observe(self, *arguments) -> torch.Tensor:
        self.steps = getattr(self, "steps", 0) + 1
        logits = super().observe(*arguments)
        return logits.fill_(float("nan")) if self.steps > 3 else logits


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("player", [lambda actor: actor, PlayerWrapper], ids=["actor", "wrapper"])
def test_episodes_that_overflow_before_their_end_are_reported(capsys, greedy, compact, player):
    played = {"seeds": np.arange(4), "max_steps": 9, "compact": compact, "description": "long mazes"}
    overflowing = Overflowing(small_model(), 4, 1.0, greedy=greedy)
    rollout(player(overflowing), Countdown([2, 5, 3, 30]), **played)
    assert "long mazes: the agent's outputs were not finite at the end of 2 of 4" in capsys.readouterr().err
    rollout(Actor(small_model(), 4, 1.0, greedy=greedy), Countdown([2, 5, 3, 30]), **played)
    assert capsys.readouterr().err == ""


def test_an_episode_ends_at_the_step_limit():
    actor, mazes = CountingActor(small_model(), 2, 1.0), Countdown([50, 2])
    episodes = rollout(actor, mazes, seeds=np.arange(2), max_steps=7)
    assert episodes.lengths.tolist() == [7, 2] and len(mazes.history) == 7
    assert episodes.last_rewards[0] == pytest.approx(np.cos(mazes.state[0]))


def test_a_few_finished_rows_are_not_compacted():
    """Compacting copies the buffers, so it waits until it pays off."""
    actor = CountingActor(small_model(), 40, 1.0)
    episodes = rollout(actor, Countdown([2] + [6] * 39), seeds=np.arange(40), max_steps=10)
    assert actor.rows == [40] * 6 and episodes.lengths.tolist() == [2] + [6] * 39 and (episodes.returns < 100).all()


def test_rows_can_be_kept_together_to_the_end():
    """The same episodes; a `transform_memory` sees all rows."""
    lengths, rows = [2, 5 * K, K, 3], []

    def seen(memory, initial):
        rows.append(len(memory.cache_lengths))
        return memory

    model = small_model()
    actor = CountingActor(model, 4, 1.0, transform_memory=seen)
    together = rollout(actor, Countdown(lengths), seeds=np.arange(4), max_steps=100, compact=False)
    assert actor.rows == [4] * 5 * K and rows == [4] * 4
    compacted = rollout(Actor(model, 4, 1.0), Countdown(lengths), seeds=np.arange(4), max_steps=100)
    assert together.lengths.tolist() == compacted.lengths.tolist() == lengths
    np.testing.assert_allclose(together.returns, compacted.returns)
    np.testing.assert_allclose(together.last_rewards, compacted.last_rewards)


def test_alternating_groups_play_as_if_alone():
    model, lengths, threads = small_model(), ([3, 2 * K], [K + 1, 1, 5]), torch.get_num_threads()
    seeds = [np.arange(2), np.arange(2, 5)]
    groups = [Countdown(length) for length in lengths]
    actors = [Actor(model, len(length), 1.0) for length in lengths]
    together = rollout_alternating(actors, groups, seeds=seeds, max_steps=100)
    alone = rollout(Actor(model, 5, 1.0), Countdown([*lengths[0], *lengths[1]]), seeds=np.arange(5), max_steps=100)
    assert together.lengths.tolist() == alone.lengths.tolist() == [3, 2 * K, K + 1, 1, 5]
    np.testing.assert_allclose(together.returns, alone.returns)
    assert all(group.closed for group in groups) and torch.get_num_threads() == threads


def test_a_failing_group_stops_the_others():
    class Broken(Countdown):
        def step(self, actions):
            raise OSError("a broken maze")

    class Endless(Countdown):
        def step(self, actions):
            assert not self.closed
            return super().step(actions)

    groups = [Endless([10**9]), Broken([9])]
    actors = [Actor(small_model(), 1, 1.0) for _ in groups]
    with pytest.raises(OSError, match="broken maze"):
        rollout_alternating(actors, groups, seeds=[np.zeros(1)] * 2, max_steps=10**9)


@pytest.mark.parametrize("options", [None, {"cue": ["key", "ball"]}])
def test_the_environments_are_reset_with_the_options(options):
    mazes = Countdown([2, 2])
    rollout(Actor(small_model(), 2, 1.0), mazes, seeds=np.arange(2), max_steps=5, options=options)
    assert mazes.options is options


def test_cases_are_grouped_in_order_as_memory_allows():
    model, cases = small_model(), [9, 3, 7, 5, 1]
    rows = 2**26 // model.memory.bytes_per_row()
    assert [*group_cases(model, cases, 1)] == [cases]
    assert [*group_cases(model, cases, rows // 2)] == [[9, 3], [7, 5], [1]]
    assert [*group_cases(model, cases, 10 * rows)] == [[case] for case in cases]
    assert [*group_cases(model, [], 1)] == []


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, None])
def test_environments_that_reset_themselves_are_refused(mode):
    mazes = Countdown([3])
    mazes.metadata = {"autoreset_mode": mode} if mode else {}
    with pytest.raises(ValueError, match="AutoresetMode.DISABLED"):
        rollout(Actor(small_model(), 1, 1.0), mazes, seeds=np.arange(1), max_steps=5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_of_the_model_even_after_an_error(training):
    model = nn.Sequential(nn.Dropout()).train(training)
    with evaluating(model):
        assert not model.training and not model[0].training
    assert model.training is model[0].training is training
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training is training


def test_mean_and_error():
    mean, error = mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0 and error == pytest.approx(np.sqrt(14 / 3) / 2)
    assert error_entry("sem", np.array([1.0, 2.0, 3.0, 6.0])) == {"sem": error}
    mean, error = mean_and_error(np.array([0.5]))
    assert mean == 0.5 and np.isnan(error)
    assert error_entry("sem", np.array([0.5])) == {}
