"""The evaluation protocol: seeds, names, target returns, memory, other players."""

import numpy as np
import pytest
import torch

from MemoryMaze.MemoryMaze_src import environment
from MemoryMaze.MemoryMaze_src import evaluate as protocol
from MemoryMaze.MemoryMaze_src.env import EPISODE_STEPS, SPEC, MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT, Mazes
from MemoryMaze.MemoryMaze_src.evaluate import PLAYERS, evaluation_seeds, metrics, player_returns
from MemoryMaze.MemoryMaze_src.generate import FIRST_DATA_SEED, PlayerOfMix
from MemoryMaze.MemoryMaze_src.generate import play as play_expert
from RATE_model.acting import evaluation
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.rollout import Episodes
from RATE_model.environments.contract import Evaluation
from tests.small_models import K, small_model

SIZES = dict(d_model=8, n_head=2, d_head=4)


def play(model, *, episodes, target_return=18.1, seed=0, transform_memory=None, precision="32", **options):
    asked = Evaluation(
        ENVIRONMENT, model, Mazes(**options), (target_return,), episodes=episodes, seed=seed,
        precision=precision, transform_memory=transform_memory,
    )  # fmt: skip
    return asked.play()[target_return][None]


@pytest.fixture
def actors(monkeypatch):
    """The options of every actor, and every return-to-go that it uses: (options, [(B,), ...])."""
    made = []

    class Recorded(Actor):
        def __init__(self, model, batch_size, target_return, **options):
            self.shown = []
            made.append(({"batch_size": batch_size, "target_return": target_return} | options, self.shown))
            super().__init__(model, batch_size, target_return, **options)

        def observe(self, *arguments):
            logits = super().observe(*arguments)
            self.shown.append(self._rtg.numpy().copy())
            return logits

    monkeypatch.setattr(evaluation, "Actor", Recorded)
    return made


@pytest.fixture
def giving(monkeypatch):
    """Mazes without pictures that give a ball at every step."""
    made = []

    class Giving:
        metadata = environment.MemoryMazeVectorEnv.metadata

        def __init__(self, num_envs, size, *, max_steps, workers):
            made.append((num_envs, size, max_steps, workers))
            self.num_envs, self.steps = num_envs, 0
            self.max_steps = np.full(num_envs, max_steps or EPISODE_STEPS[size])
            self.closed = False

        def reset(self, *, seed, options):
            self.seeds = seed
            return self._picture(), {}

        def step(self, actions):
            self.steps += 1
            over = np.full(self.num_envs, self.steps == self.max_steps[0])
            return self._picture(), np.ones(self.num_envs), ~over & False, over, {}

        def _picture(self):
            return np.random.default_rng(self.steps).integers(256, size=(self.num_envs, 3, 64, 64), dtype=np.uint8)

        def close(self):
            self.closed = True
            made.append("closed")

    monkeypatch.setattr(environment, "MemoryMazeVectorEnv", Giving)
    return made


# --- seeds, names ---


def test_evaluation_seeds_are_published_and_not_in_data():
    assert evaluation_seeds(5).tolist() == [0, 20, 40, 60, 80]
    assert evaluation_seeds(10).tolist() == list(range(0, 100, 10))
    assert evaluation_seeds(100).tolist() == list(range(100)) and evaluation_seeds(150).tolist() == list(range(150))
    for count in (1, 3, 7, 99, 101, protocol.MAX_EPISODES):
        seeds = evaluation_seeds(count)
        assert len(set(seeds.tolist())) == count and 0 <= seeds.min() and seeds.max() < FIRST_DATA_SEED


def test_published_metric_names():
    episodes = Episodes(np.array([3.0, 5.0, 10.0]), np.array([1000, 1000, 400]), np.zeros(3))
    error = np.std([3, 5, 10], ddof=1) / np.sqrt(3)
    assert metrics(episodes, target_return=18.1) == pytest.approx(
        {"LifeTimeMean_18.1": 800, "ReturnsMax_18.1": 10, "ReturnsMean_18.1": 6, "ReturnsSEM_18.1": error}
    )
    single = Episodes(np.array([3.0]), np.array([9]), np.zeros(1))
    assert metrics(single, target_return=20) == {"LifeTimeMean_20": 9, "ReturnsMax_20": 3, "ReturnsMean_20": 3}


# --- playing ---


def test_the_published_protocol_is_the_default(giving, actors):
    model = small_model(spec=SPEC, **SIZES)
    played = play(model, episodes=3, episode_timeout=9, workers=2)
    assert giving == [(2, 9, 9, 1), (1, 9, 9, 1), "closed", "closed"], "two halves, drawn in turns"
    assert sorted((options.pop("batch_size"), options.pop("seed")) for options, _ in actors) == [(1, 1), (2, 0)]
    for options, shown in actors:
        assert options == dict(
            target_return=18.1, rtg_floor=None, greedy=False, slide=1, transform_memory=None, precision="32",
            window=False, reset_target=False, cuda_graphs=False,
        )  # fmt: skip
        np.testing.assert_allclose(np.array(shown)[:, 0], 18.1 - np.arange(9), rtol=1e-5)
    assert played.returns.tolist() == [9, 9, 9] and played.lengths.tolist() == [9, 9, 9]


@pytest.mark.parametrize("floor", [0.0, 1.5, None])
def test_returns_to_go_stop_at_the_floor(giving, actors, floor):
    play(small_model(spec=SPEC, **SIZES), episodes=1, episode_timeout=6, target_return=3, rtg_floor=floor)
    free = 3.0 - np.arange(6)
    assert np.array(actors[0][1])[:, 0].tolist() == (free if floor is None else np.maximum(free, floor)).tolist()


def test_acting_flags_reach_the_actor(giving, actors):
    model = small_model("DT", spec=SPEC, **SIZES)
    play(model, size=11, episodes=1, episode_timeout=3, use_argmax=True, seed=4, slide=100, precision="bf16", workers=2)
    assert giving[0] == (1, 11, 3, 2)
    options = actors[0][0]
    assert (options["greedy"], options["seed"], options["precision"]) == (True, 4, "bf16")
    assert options["slide"] == 100


def test_knocked_out_memory_changes_actions(giving):
    model = small_model(spec=SPEC, seed=1, **SIZES)
    logits = []
    model.head.register_forward_hook(lambda module, inputs, output: logits.append(output.clone()))
    for transform in (None, knock_out_memory):
        play(model, episodes=1, episode_timeout=2 * K, use_argmax=True, transform_memory=transform)
    intact, forgotten = torch.cat(logits[: 2 * K]), torch.cat(logits[2 * K :])
    torch.testing.assert_close(intact[:K], forgotten[:K])
    assert (intact[K:] - forgotten[K:]).abs().max() > 1e-4


# --- real mazes ---


@pytest.mark.usefixtures("tasks")
def test_a_model_plays_real_mazes():
    played = play(small_model(spec=SPEC, **SIZES), episodes=2, episode_timeout=5, workers=1)
    assert played.lengths.tolist() == [5, 5] and (played.returns >= 0).all()


@pytest.mark.usefixtures("tasks")
def test_baselines_play_the_same_mazes_without_rendering(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert set(PLAYERS) == {"random", "explorer", "planner"}
    returns = player_returns("planner", episodes=2, steps=120, workers=1)
    drawn = []
    for seed in evaluation_seeds(2).tolist():
        maze = MemoryMazeEnv(9, max_steps=120, privileged=True)
        drawn.append(play_expert(maze, PlayerOfMix.of(PLAYERS["planner"]), seed)["rewards"].sum())
        maze.close()
    assert returns.tolist() == drawn and returns.sum() > 2
    assert player_returns("random", episodes=1, steps=60, workers=1).tolist() == [0]
