"""Players without a model: what they know, how they play, which results are cached."""

import sys

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from RATE_model.errors import UserError
from VizDoom.VizDoom_src import baselines
from VizDoom.VizDoom_src.baselines import PLAYERS, play_baselines
from VizDoom.VizDoom_src.engine import Surroundings
from VizDoom.VizDoom_src.evaluate import Played, evaluation_seeds
from VizDoom.VizDoom_src.expert import Expert
from VizDoom.VizDoom_src.scenario import Scenario, cache_directory

SHORT = dict(episodes=12, max_steps=12)  # three parts
QUICK = ("random", "always red")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Forget the results of earlier tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def same(one: dict[str, Played], other: dict[str, Played]) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(left, right)
        for label in one
        for left, right in zip(
            (*vars(one[label].episodes).values(), one[label].is_red),
            (*vars(other[label].episodes).values(), other[label].is_red),
            strict=True,
        )
    )


def test_baselines_get_the_colour_only_if_allowed():
    right, wrong = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
    around = Surroundings(np.zeros(2), 0.0, np.zeros(2), 80.0, right, wrong, True)
    for is_red in (True, False):
        for label in ("expert, limited view", "expert, full view"):
            assert PLAYERS[label].told(around, is_red) is around
        told = PLAYERS["colour-blind"].told(around, is_red)
        assert told.right.tolist() == [[1, 2], [3, 4], [5, 6]] and told.wrong.shape == (0, 2)
    assert PLAYERS["always red"].told(around, True) is around
    told = PLAYERS["always red"].told(around, False)
    assert told.right is wrong and told.wrong is right and told.pillar


def test_baselines_play_the_evaluation_episodes(game, monkeypatch):
    """The expert with the full view against a plain loop. Always preferring red equals it in red episodes."""
    found = play_baselines(workers=1, **SHORT)
    assert list(found) == list(PLAYERS)
    seeds, is_red = evaluation_seeds(12)
    env = game(max_steps=12, privileged=True)
    returns = []
    for seed in seeds:
        env.reset(seed=int(seed))
        expert, total, over = Expert("full"), 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(expert.act(env.surroundings()))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    full, always_red = found["expert, full view"], found["always red"]
    assert full.episodes.returns == pytest.approx(returns) and full.is_red.tolist() == is_red.tolist()
    assert always_red.returns("red").tolist() == full.returns("red").tolist()
    assert all(played.episodes.lengths.tolist() == [12] * 12 for played in found.values())


def test_colour_is_reported_if_known(game):
    clear = play_baselines(labels=("expert, full view",), scenario=Scenario("clear"), episodes=4, max_steps=40)
    played = clear["expert, full view"]
    env, returns = game(Scenario("clear"), max_steps=40, privileged=True), []
    for seed, is_red in zip(*evaluation_seeds(4), strict=True):
        env.reset(seed=int(seed), options={"is_red": is_red})
        expert = Expert("full")
        returns.append(sum(env.step(expert.act(env.surroundings()))[1] for _ in range(40)))
    assert played.episodes.returns == pytest.approx(returns)


def test_baseline_results_are_cached(monkeypatch):
    first = play_baselines(labels=QUICK, workers=1, **SHORT)
    tasks = []

    def count(scenario, max_steps, label, seeds):
        tasks.append((label, max_steps))
        return original(scenario, max_steps, label, seeds)

    original = baselines._play_part
    monkeypatch.setattr(baselines, "_play_part", count)
    assert same(play_baselines(labels=QUICK[::-1], workers=1, **SHORT), {label: first[label] for label in QUICK[::-1]})
    assert not tasks
    play_baselines(labels=QUICK[:1], workers=1, episodes=12, max_steps=6)
    play_baselines(labels=QUICK[:1], workers=1, scenario=Scenario(items=9), **SHORT)
    assert [steps for _, steps in tasks] == [6] * 3 + [12] * 3, "of another length, of another scenario"
    del tasks[:]
    monkeypatch.setattr(baselines, "EXPERT_VERSION", 99)
    play_baselines(labels=QUICK[:1], workers=1, **SHORT)
    assert len(tasks) == 3


def test_damaged_cache_file_is_recomputed():
    options = dict(labels=("random",), workers=1, episodes=4, max_steps=3)
    first = play_baselines(**options)
    (kept,) = cache_directory().glob("player_*")
    whole = kept.read_bytes()
    for damage in (b"", b"[[1, 2", b"[[1, 2, 3]]", b"[1, 2]", b'"no"'):
        kept.write_bytes(damage)
        assert same(play_baselines(**options), first) and kept.read_bytes() == whole


def test_without_vizdoom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[vizdoom\]'"):
        play_baselines(**SHORT)
