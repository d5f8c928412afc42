"""The evaluation protocol: caps, names, many sizes at once, the expert for comparison, twins."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("minigrid")

import torch

from MinigridMemory.MinigridMemory_src import environment
from MinigridMemory.MinigridMemory_src import evaluate as protocol
from MinigridMemory.MinigridMemory_src.env import CUES, SPEC, MinigridMemoryVectorEnv, expert_cap
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT, Mazes
from MinigridMemory.MinigridMemory_src.evaluate import capped, expert_play, success_rate
from MinigridMemory.MinigridMemory_src.expert import EXPERT_STREAM, Expert
from RATE_model.acting import evaluation
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins, knock_out_memory
from RATE_model.acting.rollout import BatchActor, Episodes, rollout
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.memories.rate.state import SegmentState
from tests.minigrid_runs import play
from tests.small_models import K, small_model


class Experts(BatchActor):
    """Replaces `Actor`: one expert per row, which sees the mazes themselves. A transform changes the cues."""

    def __init__(self, model, batch_size, target_return, *, transform_memory=None, **options) -> None:
        self.experts = [Expert(np.random.default_rng([row, EXPERT_STREAM])) for row in range(batch_size)]
        self.transform, self.steps = transform_memory, 0

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        if self.transform is not None and self.steps and self.steps % K == 0:
            self.exchange()
        self.steps += 1
        views = (self.mazes[row].view for row in self.rows)
        return np.array([expert.act(view) for expert, view in zip(self.experts, views, strict=True)])

    def exchange(self) -> None:
        """Exchange only the remembered object: tokens (B, 1, 1) hold it."""
        cues = torch.tensor([float(expert._cue or 0) for expert in self.experts]).view(-1, 1, 1)
        memory = SegmentState(cues, (), torch.zeros(len(cues), dtype=torch.int64))
        for expert, cue in zip(
            self.experts, self.transform(memory, memory).tokens.flatten().int().tolist(), strict=True
        ):
            expert._cue = cue or None

    def keep(self, rows: np.ndarray) -> None:
        self.experts, self.rows = [self.experts[row] for row in rows], self.rows[rows]


@pytest.fixture
def experts(monkeypatch):
    """Experts act instead of the model."""

    def roll(actor, mazes, **options):
        actor.mazes, actor.rows = mazes.environments, np.arange(mazes.num_envs)
        return rollout(actor, mazes, **options)

    monkeypatch.setattr(evaluation, "Actor", Experts)
    monkeypatch.setattr(evaluation, "rollout", roll)


def same(one: Episodes, other: Episodes) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(*pair) for pair in pairs)


def seeing_model(mode: str):
    """A random model whose most probable actions depend on what it sees."""
    model = small_model(mode, spec=SPEC, seed=3)
    with torch.no_grad():
        model.encoder.observation.project.weight.mul_(5)
    return model


def metrics(played: dict[int, Episodes], *, cap: int = 96, layouts: str = "own", final: bool = False):
    """The environment's metrics of a training that evaluates these sizes, at its end all of them."""
    task = SimpleNamespace(eval_sizes=() if final else (*played,), final_sizes=(*played,))
    episodes = len(next(iter(played.values())).returns)
    evaluation = Evaluation(
        ENVIRONMENT, small_model(spec=SPEC), Mazes(layouts=layouts, episode_timeout=cap), (0.96,), episodes=episodes
    )
    return ENVIRONMENT.metrics(played, evaluation, SimpleNamespace(task=task), final=final)


# --- caps ---


def test_success_under_published_cap_follows_from_longer_episodes():
    episodes = Episodes(np.array([0.9, 0.8, 0.0, 0.0]), np.array([96, 97, 120, 30]), np.array([0.9, 0.8, 0.0, 0.0]))
    short = capped(episodes, 96)
    assert short.last_rewards.tolist() == [0.9, 0, 0, 0] and success_rate(short) == 0.25
    assert short.returns.tolist() == [0.9, 0, 0, 0] and short.lengths.tolist() == [96, 96, 96, 30]
    assert capped(episodes, 196).last_rewards.tolist() == [0.9, 0.8, 0, 0]


def test_derived_success_equals_playing_under_the_cap(experts):
    """The expert in mazes of size 91, some of which exceed the cap."""
    wide = play(small_model(spec=SPEC), [91], episodes=12)[91]
    assert wide.lengths.max() > 96 and (wide.last_rewards > 0).all()
    mazes = MinigridMemoryVectorEnv(12, 91, max_steps=96)
    actor = Experts(None, 12, 0.96)
    actor.mazes, actor.rows = mazes.environments, np.arange(12)
    really = rollout(actor, mazes, seeds=ENVIRONMENT.seeds(12), max_steps=96)
    read_off = capped(wide, 96)
    assert read_off.lengths.tolist() == really.lengths.tolist() and read_off.returns.tolist() == really.returns.tolist()
    assert read_off.last_rewards.tolist() == really.last_rewards.tolist()
    assert (read_off.last_rewards > 0).tolist() == [maze.success for maze in mazes.environments]
    assert 0 < success_rate(read_off) < 1


def test_derived_success_of_a_model_equals_playing():
    """It walks at random; many episodes end at the cap."""
    model = small_model(spec=SPEC)
    played = play(model, [61], episodes=6, greedy=False, seed=3)[61]
    assert protocol.widest_cap(61) == 136 and (played.lengths > 96).any()
    read_off = capped(played, 96)
    with torch.no_grad():
        actor = Actor(model, 6, 0.96, greedy=False, seed=3)
    really = rollout(actor, MinigridMemoryVectorEnv(6, 61, max_steps=96), seeds=ENVIRONMENT.seeds(6), max_steps=96)
    assert read_off.lengths.tolist() == really.lengths.tolist() and read_off.returns.tolist() == really.returns.tolist()


def test_expert_under_the_published_cap():
    rates = {size: success_rate(capped(expert_play(size, 100), 96)) for size in (11, 21, 31, 41, 91)}
    assert rates.pop(91) < 0.8 and set(rates.values()) == {1.0}
    assert success_rate(capped(expert_play(91, 100), expert_cap(91))) == 1


def test_other_caps_and_layouts_are_evaluated(experts, monkeypatch):
    """Episodes are played to a longer cap, and never truncated for a shorter one."""
    model, limits = small_model(spec=SPEC), []

    def mazes(rows, sizes, *, max_steps, **options):
        limits.append(max(max_steps))
        return MinigridMemoryVectorEnv(rows, sizes, max_steps=max_steps, **options)

    monkeypatch.setattr(environment, "MinigridMemoryVectorEnv", mazes)
    for cap in (10, 500):
        played = play(model, [91], episodes=12, layouts="published", episode_timeout=cap)
        assert same(played[91], expert_play(91, 12, layouts="published"))
        assert not same(played[91], expert_play(91, 12))
        found = metrics(played, cap=cap, layouts="published")
        rate = success_rate(capped(played[91], cap))
        assert found["Success_rate_l_91"] == found["Expert_success_rate_l_91"] == rate == (cap == 500)
        assert found["Success_rate_l_91_expert_cap"] == 1
    assert limits == [196, 500]


# --- names, seeds ---


def test_published_metric_names():
    def episodes(*lengths: int) -> Episodes:
        rewards = np.array([0.5, 0.9, 0.0])
        return Episodes(rewards, np.array(lengths), rewards)

    found = metrics({11: episodes(10, 20, 96), 91: episodes(100, 90, 196)}, final=True)
    expert = success_rate(capped(expert_play(91, 3), 96))
    expected = {
        "LifeTimeMean_r_0.96_l_11": 42, "ReturnsMax_r_0.96_l_11": 0.9, "ReturnsMean_r_0.96_l_11": 1.4 / 3,
        "Success_rate_l_11": 2 / 3, "Success_rate_l_11_expert_cap": 2 / 3, "Expert_success_rate_l_11": 1,
        "LifeTimeMean_r_0.96_l_91": 94, "ReturnsMax_r_0.96_l_91": 0.9, "ReturnsMean_r_0.96_l_91": 0.3,
        "Success_rate_l_91": 1 / 3, "Success_rate_l_91_expert_cap": 2 / 3, "Expert_success_rate_l_91": expert,
    }  # fmt: skip
    assert found == pytest.approx({f"FINAL_{name}": value for name, value in expected.items()})


def test_evaluation_seeds_are_published_and_not_in_data():
    assert ENVIRONMENT.seeds(100).tolist() == list(range(100))
    assert ENVIRONMENT.seeds(ENVIRONMENT.episode_counts[-1]).max() < 10_000
    for count in (0, 10_001):
        with pytest.raises(UserError, match=f"--episodes {count}: must be at least 1 and at most 10000"):
            ENVIRONMENT.check_episodes(episodes=count)


# --- playing ---


def test_expert_cap_is_enough_in_every_group(experts, monkeypatch):
    """Three sizes in two groups; each episode belongs to its size and seed."""
    monkeypatch.setattr(evaluation, "group_cases", lambda model, sizes, episodes: [list(sizes[:2]), list(sizes[2:])])
    for random_length in (True, False):
        played = play(small_model(spec=SPEC), [9, 61, 21], episodes=5, random_length=random_length)
        assert list(played) == [9, 61, 21]
        for size, episodes in played.items():
            assert same(episodes, expert_play(size, 5, random_length)), size


@pytest.mark.parametrize("mode", ["RATE", "DT"])
def test_result_of_a_size_does_not_depend_on_others(mode):
    model = seeing_model(mode)
    together = play(model, [11, 7, 9], episodes=4)
    assert len(set(np.concatenate([episodes.lengths for episodes in together.values()]))) > 2
    for size, episodes in together.items():
        assert same(play(model, [size], episodes=4)[size], episodes)


def test_finished_mazes_cost_nothing(monkeypatch):
    rows = []

    class Counting(Actor):
        def act(self, observations, rewards=None):
            rows.append(len(observations))
            return super().act(observations, rewards)

    monkeypatch.setattr(evaluation, "Actor", Counting)
    lengths = play(small_model(spec=SPEC, seed=3), [9], episodes=8, greedy=False)[9].lengths
    assert sum(rows) == lengths.sum() < 8 * lengths.max() and len(rows) == lengths.max()


def test_drawn_actions_follow_the_seed():
    model = small_model(spec=SPEC)
    first, again, other = (play(model, [9], episodes=4, greedy=False, seed=seed)[9] for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert same(play(model, [7, 9, 9], episodes=4, greedy=False, seed=1)[9], first), "whatever is played beside"


# --- twins ---


def test_twins_differ_only_in_the_cue(monkeypatch):
    begun = []

    class Recorded(MinigridMemoryVectorEnv):
        def reset(self, **arguments):
            result = super().reset(**arguments)
            mazes = [maze._maze for maze in self.environments]
            begun.extend((maze.grid.encode(), (*maze.agent_pos, maze.agent_dir)) for maze in mazes)
            begun.append([(maze.cue, maze.arm) for maze in self.environments])
            return result

    monkeypatch.setattr(environment, "MinigridMemoryVectorEnv", Recorded)
    played = play(small_model(spec=SPEC), [7, 9], episodes=3, twins=True)
    assert [len(episodes.lengths) for episodes in played.values()] == [6, 6]
    *begun, kinds = begun
    cues, arms = (np.array(kind) for kind in zip(*kinds, strict=True))
    assert cues.tolist() == list(CUES) * 6 and (arms[::2] != arms[1::2]).all()
    for (grid, start), (other_grid, other_start) in zip(begun[::2], begun[1::2], strict=True):
        assert np.argwhere((grid != other_grid).any(-1)).tolist() == [[1, len(grid) // 2 - 1]]
        assert start == other_start
    assert any((begun[0][0] != grid).any() for grid, _ in begun[2:6:2]), "pairs differ from one another"


def test_exchanged_memories_reduce_a_perfect_agent_to_guessing(experts):
    """With intact memory, it is always right."""
    model = small_model(spec=SPEC)
    intact = play(model, [21], episodes=60, twins=True)[21]
    assert len(intact.returns) == 120 and (intact.last_rewards > 0).all()
    exchanged = play(model, [21], episodes=60, twins=True, transform_memory=exchange_twins(1))[21]
    assert 0.4 < (exchanged.last_rewards > 0).mean() < 0.6


def test_memory_of_a_model_is_exchanged_and_knocked_out():
    model = small_model(spec=SPEC, seed=1)
    options = dict(episodes=4, twins=True, greedy=False)
    intact, exchanged, forgotten = (
        play(model, [11], transform_memory=transform, **options)[11]
        for transform in (None, exchange_twins(), knock_out_memory)
    )
    assert not same(intact, exchanged) and not same(intact, forgotten) and not same(exchanged, forgotten)
    unchanged = play(model, [11], transform_memory=lambda memory, initial: memory, **options)[11]
    assert same(intact, unchanged)
