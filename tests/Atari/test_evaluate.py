"""The evaluation protocol: episodes, target returns, how scores are counted."""

import numpy as np
import pytest

pytest.importorskip("ale_py")

import torch

from Atari.env import spec_of
from Atari.environment import ENVIRONMENT, Play
from Atari.evaluate import ClippedRewards, metrics, random_player, target_of
from Atari.games import GAMES, Game
from Atari.generate import FIRST_DATA_SEED
from RATE_model.acting.rollout import Episodes
from RATE_model.acting.vector import FrozenVectorEnv
from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from tests.small_models import rate_agent

BREAKOUT, PONG = GAMES["Breakout"], GAMES["Pong"]


def model_of(game: Game, *, sliding: bool = False) -> Agent:
    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_head=2, d_model=16, d_head=8, d_inner=16, context_length=4, mrv_act="relu")
    memory = dict(num_mem_tokens=0, n_head_ca=0) if sliding else dict(num_mem_tokens=2, n_head_ca=1)
    config = RATEConfig(**sizes, **memory, mem_len=0, sliding=sliding)
    return rate_agent(config, spec_of(game)).eval()


def play(
    model: Agent,
    game: Game,
    *,
    target_return: float,
    episodes: int,
    greedy: bool = False,
    seed: int = 0,
    max_steps: int,
) -> Episodes:
    options = Play(game=game.name, use_argmax=greedy, max_steps=max_steps, opening="black")
    asked = Evaluation(ENVIRONMENT, model, options, (target_return,), episodes=episodes, seed=seed)
    return asked.play()[target_return][None]


def test_seeds_are_never_those_of_data():
    seeds = ENVIRONMENT.seeds(3)
    assert seeds.tolist() == [2**31, 2**31 + 1, 2**31 + 2]
    assert FIRST_DATA_SEED + 10**8 < seeds[0], "room for more episodes than data will ever have"


def test_published_metric_names():
    played = Episodes(np.array([1.0, 4.0]), np.array([10, 20]), np.zeros(2))
    result = metrics(played, BREAKOUT)
    assert result["eval_return"] == 2.5 and result["eval_std"] == 1.5 and result["eval_length"] == 15
    assert result["eval_sem"] == pytest.approx(1.5)
    assert result["normalised_score"] == pytest.approx(100 * (2.5 - 1.7) / (30.5 - 1.7))
    one = metrics(Episodes(np.array([3.0]), np.array([7]), np.zeros(1)), Game(name="SpaceInvaders", actions=6))
    assert one == {"eval_return": 3, "eval_std": 0, "eval_length": 7}


@pytest.mark.parametrize("sliding", [False, True])
def test_episodes_are_functions_of_their_seeds(sliding):
    model = model_of(PONG, sliding=sliding)
    one, two = (play(model, PONG, target_return=20, episodes=2, max_steps=20, greedy=True) for _ in range(2))
    np.testing.assert_array_equal(one.returns, two.returns)
    assert one.lengths.tolist() == [20, 20]


def test_actions_are_sampled_by_default(monkeypatch):
    seen = []
    step = FrozenVectorEnv.step
    monkeypatch.setattr(
        FrozenVectorEnv, "step", lambda self, actions: seen.append(actions.copy()) or step(self, actions)
    )
    model = model_of(BREAKOUT)
    torch.nn.init.zeros_(model.head.project.weight)  # all actions are equally probable
    taken = {}
    for name, options in (("greedy", {"greedy": True}), ("drawn", {}), ("again", {}), ("other", {"seed": 1})):
        seen.clear()
        play(model, BREAKOUT, target_return=1, episodes=2, max_steps=25, **options)
        taken[name] = np.stack(seen)
    assert not taken["greedy"].any() and set(taken["drawn"].flat) == {0, 1, 2, 3}
    np.testing.assert_array_equal(taken["drawn"], taken["again"])
    assert not np.array_equal(taken["drawn"], taken["other"])


@pytest.mark.parametrize(("clip", "expected"), [(False, [100, 93, 93, 89, 90, 90]), (True, [100, 99, 99, 98, 99, 99])])
def test_every_point_reduces_the_return_to_go(clip, expected, monkeypatch):
    """As the environment counts them, or clipped as in the data; reported returns are unclipped."""
    asked = []
    model = model_of(BREAKOUT)
    encode = model.encoder.encode_rtg
    monkeypatch.setattr(model.encoder, "encode_rtg", lambda rtg: asked.append(rtg.clone()) or encode(rtg))
    rewards = iter([7.0, 0.0, 4.0, -1.0] + [0.0] * 20)
    step = FrozenVectorEnv.step

    def earn(self, actions):
        observations, _, *flags = step(self, actions)
        return observations, np.array([next(rewards)]), *flags

    monkeypatch.setattr(FrozenVectorEnv, "step", earn)
    if clip:
        monkeypatch.setattr(type(ENVIRONMENT), "player", lambda self, evaluation, actor: ClippedRewards(actor))
    played = play(model, BREAKOUT, target_return=100, episodes=1, max_steps=6)
    assert [rtg.item() for rtg in asked] == expected and played.returns.tolist() == [10]


def test_the_environment_is_the_published_one():
    usual = ENVIRONMENT.make(None, Play(game="Pong"))
    found = (usual.game, usual.sticky, usual.noops, usual.max_steps, usual.opening)
    assert found == (PONG, 0, 30, 7000, "published")
    other = ENVIRONMENT.make(None, Play(game="Pong", sticky=0.25, max_steps=2, opening="black"))
    assert (other.sticky, other.max_steps, other.opening) == (0.25, 2, "black")


def test_random_play_earns_the_published_score():
    played = ENVIRONMENT.play_as(random_player(BREAKOUT), Play(game="Breakout"), episodes=10)
    assert played.returns.mean() < 4 and played.lengths.max() < 600


def test_a_game_without_a_published_return_needs_one():
    game = Game(name="SpaceInvaders", actions=6)
    assert target_of(BREAKOUT, None) == 180 and target_of(BREAKOUT, -2) == -2 and target_of(game, 5) == 5
    with pytest.raises(UserError, match="--target_return: SpaceInvaders has no published target return"):
        target_of(game, None)
