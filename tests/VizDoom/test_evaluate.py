"""The evaluation protocol: seeds, colours, names, acting, twins, engines that die."""

import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

pytest.importorskip("vizdoom")

import torch

from RATE_model.acting import evaluation
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins
from RATE_model.acting.rollout import Episodes
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from tests.small_models import K, small_model
from VizDoom.VizDoom_src import evaluate as protocol
from VizDoom.VizDoom_src.engine import Engine, EngineDied
from VizDoom.VizDoom_src.env import SPEC
from VizDoom.VizDoom_src.environment import ENVIRONMENT, Games, _by_colour
from VizDoom.VizDoom_src.evaluate import Played, evaluation_seeds, figures, metrics
from VizDoom.VizDoom_src.scenario import Scenario
from VizDoom.VizDoom_src.seeds import FIRST_DATA_SEED, GREEN_SEEDS, RED_SEEDS

STEPS = 10  # more than two segments of the small model
SHORT = dict(episodes=2, max_steps=STEPS)


def play(
    model, *, scenario=None, target_return=56.5, episodes, max_steps, greedy=True, seed=0, slide=1, **how
) -> Played:
    """The episodes of an evaluation with these options; `how` goes to `Evaluation.play_with`."""
    options = Games(**asdict(scenario or Scenario()), episode_timeout=max_steps, use_argmax=greedy, slide=slide)
    asked = Evaluation(ENVIRONMENT, model, options, (target_return,), episodes=episodes, seed=seed)
    transform = how.pop("transform_memory", None)
    return _by_colour(asked.play_with(transform, **how)[target_return][None], asked)


def same(one: Played, other: Played) -> bool:
    pairs = zip(vars(one.episodes).values(), vars(other.episodes).values(), strict=True)
    return np.array_equal(one.is_red, other.is_red) and all(np.array_equal(*pair) for pair in pairs)


@pytest.fixture
def acted(monkeypatch) -> list[list[int]]:
    """The actions of every step, in all rows."""
    actions = []

    class Recorded(Actor):
        def act(self, observations, rewards=None):
            actions.append(super().act(observations, rewards))
            return actions[-1]

    monkeypatch.setattr(evaluation, "Actor", Recorded)
    return actions


def seeing_model(mode: str = "RATE", seed: int = 3):
    """A random model whose most probable actions depend on what it sees."""
    model = small_model(mode, spec=SPEC, seed=seed)
    with torch.no_grad():
        model.encoder.observation[0].project.weight.mul_(8)
    return model


# --- seeds ---


def test_evaluation_seeds_are_a_subset_of_the_published_ones():
    seeds, is_red = evaluation_seeds()
    assert seeds.tolist() == [*RED_SEEDS[::4], *GREEN_SEEDS[::4]] and is_red.tolist() == [True] * 25 + [False] * 25
    assert evaluation_seeds(200)[0].tolist() == [*RED_SEEDS, *GREEN_SEEDS] and max(RED_SEEDS) < FIRST_DATA_SEED
    for episodes in range(2, 201, 2):
        seeds, is_red = evaluation_seeds(episodes)
        assert len(set(seeds.tolist())) == episodes and is_red.sum() == episodes / 2
        assert set(seeds[is_red].tolist()) <= set(RED_SEEDS) and set(seeds[~is_red].tolist()) <= set(GREEN_SEEDS)


@pytest.mark.parametrize("variant", ["published", "clear"])
def test_reported_colours_match_the_episodes(variant, games):
    seeds, is_red = evaluation_seeds(8)
    scenario = Scenario(variant)
    _, info = games(8, scenario).reset(seed=seeds, options=protocol.colour_options(scenario, is_red))
    assert info["is_red"].tolist() == is_red.tolist()


def test_episode_numbers_must_cover_both_colours():
    ENVIRONMENT.check_episodes(eval_episodes=4, episodes=200)
    for count in (0, 2, 5, 202):
        with pytest.raises(
            UserError, match=f"--eval_episodes {count}: must be at least 4 and at most 200, in steps of 2"
        ):
            ENVIRONMENT.check_episodes(eval_episodes=count)
    assert ENVIRONMENT.seeds(5).tolist() == evaluation_seeds(6)[0][:5].tolist(), "of an odd number of videos"


# --- names ---


def test_published_metric_names_and_weaker_colour():
    episodes = Episodes(np.array([10.0, 14.0, 2.0, 4.0]), np.array([501, 701, 1, 201]), np.zeros(4))
    played = Played(episodes, np.array([True, True, False, False]))
    assert played.lifetimes.tolist() == [1000, 1400, 0, 400]
    assert metrics(played, target_return=56.5) == pytest.approx(
        {
            "LifeTimeMean_red_56.5": 1200, "ReturnsMean_red_56.5": 12, "ReturnsSEM_red_56.5": 2,
            "LifeTimeMean_green_56.5": 200, "ReturnsMean_green_56.5": 3, "ReturnsSEM_green_56.5": 1,
            "LifeTimeMean_56.5": 700, "ReturnsMean_56.5": 7.5, "ReturnsSEM_56.5": np.sqrt(91 / 12),
            "ReturnsMin_56.5": 3, "ReturnsDifference_56.5": 9,
        }
    )  # fmt: skip
    assert figures(played) == pytest.approx(
        {
            "red": 12, "red_error": 2, "green": 3, "green_error": 1, "mean": 7.5, "mean_error": np.sqrt(91 / 12),
            "weaker": 3, "difference": 9, "red_tics": 1200, "green_tics": 200,
        }
    )  # fmt: skip
    turned = Played(episodes, ~played.is_red)
    assert metrics(turned, target_return=10)["ReturnsDifference_10"] == 9
    assert metrics(turned, target_return=10)["ReturnsMin_10"] == 3
    assert metrics(turned, target_return=10)["ReturnsMean_red_10"] == 3


# --- playing ---


@pytest.mark.parametrize(("mode", "variant"), [("RATE", "published"), ("DT", "clear")])
def test_parallel_episodes_equal_a_plain_loop(mode, variant, game, acted):
    """One game and one actor after the other, step by step."""
    model, scenario = seeing_model(mode), Scenario(variant)
    played = play(model, scenario=scenario, target_return=20.0, episodes=4, max_steps=STEPS)
    together = np.array(acted)
    assert len(set(together.ravel().tolist())) > 1 and (together != together[:, :1]).any()
    env = game(scenario, max_steps=STEPS)
    for row, (seed, is_red) in enumerate(zip(*evaluation_seeds(4), strict=True)):
        actor, total, reward, over, actions = Actor(model, 1, 20.0), 0.0, 0.0, False, []
        observation, _ = env.reset(seed=int(seed), options={"is_red": is_red} if variant == "clear" else None)
        while not over:
            actions.append(actor.act(observation[None], np.array([reward]))[0])
            observation, reward, terminated, truncated, _ = env.step(int(actions[-1]))
            total, over = total + reward, terminated or truncated
        assert together[:, row].tolist() == actions
        assert (played.episodes.returns[row], played.episodes.lengths[row]) == (pytest.approx(total), STEPS)
        assert played.episodes.last_rewards[row] == reward


def test_episodes_are_played_in_groups(acted, monkeypatch):
    model = seeing_model()
    whole = play(model, **SHORT)
    monkeypatch.setattr(type(ENVIRONMENT), "max_environments", 1)
    del acted[:]
    assert same(play(model, **SHORT), whole)
    assert len(acted) == 2 * STEPS and all(len(row) == 1 for row in acted)


def test_an_episode_ends_with_the_players_death():
    """A model that never moves dies when the floor has used up its health."""
    model = small_model("DT", spec=SPEC)
    with torch.no_grad():
        model.head.project.weight.zero_()  # all actions are equally probable: the first one, turn left
    played = play(model, episodes=2, max_steps=400, slide=4)
    assert played.episodes.lengths.tolist() == [192] * 2 and played.lifetimes.tolist() == [382] * 2
    assert played.episodes.returns == pytest.approx(192 * 0.02)


def test_drawn_actions_follow_the_seed(acted):
    model = small_model(spec=SPEC)

    def actions(seed: int) -> list[list[int]]:
        del acted[:]
        play(model, greedy=False, seed=seed, **SHORT)
        return np.array(acted).tolist()

    assert actions(1) == actions(1) != actions(2)


def test_target_return_and_memory_reach_the_actor(acted):
    model = seeing_model()
    seen = []

    def transform(memory, initial):
        seen.append(len(memory.cache_lengths))
        return memory

    def actions(**options) -> list[list[int]]:
        del acted[:]
        play(model, **SHORT, **options)
        return np.array(acted).tolist()

    intact = actions()
    assert actions(transform_memory=transform) == intact and seen == [2, 2], "before the second and the third segment"
    other = actions(transform_memory=lambda memory, initial: replace(memory, tokens=memory.tokens.flip(-1) * 9))
    assert other[:K] == intact[:K] and other != intact
    assert actions(target_return=-300.0) != intact


# --- twins ---


def test_twins_are_one_layout_with_either_colour(acted):
    model, scenario = seeing_model(), Scenario("clear")
    played = play(model, scenario=scenario, twins=True, **SHORT)
    assert len(played.episodes.returns) == 4 and played.is_red.tolist() == [True, False] * 2
    assert all(len(row) == 4 for row in acted), "no row is dropped: the transform compares neighbours"
    own = play(model, scenario=scenario, **SHORT)
    rows = [0, 3]  # the colours of the seeds without twins
    assert played.episodes.returns[rows].tolist() == own.episodes.returns.tolist()
    with pytest.raises(UserError, match="twins need --variant clear"):
        play(model, twins=True, **SHORT)


def test_memories_of_twins_can_be_exchanged(acted):
    model, scenario = small_model(spec=SPEC, seed=1), Scenario("clear")

    def actions(transform) -> list[list[int]]:
        del acted[:]
        play(model, scenario=scenario, twins=True, greedy=False, transform_memory=transform, **SHORT)
        return np.array(acted).tolist()

    intact, exchanged = actions(None), actions(exchange_twins())
    assert intact[:K] == exchanged[:K] and intact != exchanged


# --- mistakes ---


def dying(monkeypatch, calls: set[int]) -> None:
    """Engines die at these steps, counted over all engines from 1."""
    act, count = Engine.act, [0]

    def act_or_die(self, action):
        count[0] += 1
        if count[0] in calls:
            raise EngineDied("killed")
        return act(self, action)

    monkeypatch.setattr(Engine, "act", act_or_die)


def test_one_dead_engine_does_not_change_results(monkeypatch, engines):
    model = seeing_model()
    expected = play(model, **SHORT)
    dying(monkeypatch, {9})
    assert same(play(model, **SHORT), expected)
    dying(monkeypatch, set(range(9, 1000)))
    with pytest.raises(UserError, match=r"engine died twice in the episode of seed \d+, at step \d"):
        play(model, **SHORT)
    assert not engines(), "all are ended, also those of the other episodes"


def test_without_vizdoom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[vizdoom\]'"):
        play(small_model(spec=SPEC), **SHORT)
