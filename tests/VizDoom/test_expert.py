"""The scripted player: its returns, what it may know, its noise."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from VizDoom.VizDoom_src.engine import Surroundings
from VizDoom.VizDoom_src.env import FORWARD, LEFT, LEFT_FORWARD, RIGHT, RIGHT_FORWARD
from VizDoom.VizDoom_src.expert import PERTURBATION_STEPS, Expert, PerturbedExpert
from VizDoom.VizDoom_src.generate import Recipe, play
from VizDoom.VizDoom_src.scenario import PILLAR, Scenario


def around(right=(), wrong=(), *, position=(-128.0, -448.0), angle=90.0, health=80.0, pillar=False):
    """A player at rest that faces north unless told otherwise."""
    places = [np.array(list(items), dtype=np.float64).reshape(-1, 2) for items in (right, wrong)]
    return Surroundings(np.array(position), angle, np.zeros(2), health, *places, pillar)


def action(surroundings, **options):
    return Expert(**options).act(surroundings)


def returns(game, view, *, noise=0.0, perturbation=0.0, seeds=range(1_000_000, 1_000_010), steps=90):
    env, recipe = game(privileged=True, max_steps=steps), Recipe(Scenario(), steps, view, noise, perturbation)
    episodes = [play(env, env.reset(seed=seed), recipe, seed) for seed in seeds]
    return np.array([episode["rewards"].sum() for episode in episodes])


def test_expert_is_as_strong_as_published_policy(game):
    """Published data has 4.42 to 4.49 in 90 steps, random play 2.15; the full view allows about 4.8."""
    limited, full = returns(game, "limited"), returns(game, "full")
    assert 3.8 < limited.mean() < full.mean() and full.mean() > 4.3
    assert returns(game, "limited", noise=0.5).mean() < limited.mean()
    assert returns(game, "limited", perturbation=0.5).mean() < limited.mean()


def test_expert_with_full_view_lives_long(game):
    assert (returns(game, "full", seeds=(2, 0), steps=400) > 17).all()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((-128.0, -200.0), FORWARD),
        ((-328.0, -200.0), LEFT_FORWARD),
        ((72.0, -200.0), RIGHT_FORWARD),
        ((-178.0, -398.0), LEFT),  # near and to the side: turn first
        ((-128.0, -700.0), RIGHT),  # behind
    ],
)
def test_expert_collects_the_right_colour(place, expected):
    assert action(around(right=[place]), view="full") == expected


def test_limited_view_expert_knows_only_what_it_sees():
    behind, aside = (-128.0, -700.0), (300.0, -448.0)
    search = action(around(), view="limited")
    for place in (behind, aside):
        assert action(around(right=[place]), view="limited") == search
        assert action(around(right=[place]), view="full") != search
        assert action(around(right=[(-128.0, -300.0), place]), view="limited") == FORWARD
    # A wrong item is noticed when it is close, or in view.
    blocked = around(right=[(-128.0, -300.0)], wrong=[(-128.0, -380.0)])
    assert action(blocked, view="limited") != FORWARD


def test_expert_avoids_wrong_items_and_pillar():
    target = (-128.0, 100.0)
    assert action(around(right=[target]), view="full") == FORWARD
    close = (-128.0, -168.0)  # just in front of the pillar
    assert action(around(right=[target], position=close), view="full") == FORWARD
    assert action(around(right=[target], position=close, pillar=True), view="full") != FORWARD
    assert PILLAR == (-128.0, -128.0)
    near = around(right=[(-128.0, -400.0)], health=100.0)
    assert action(replace(near, health=99.0), view="full") == FORWARD
    assert action(near, view="full") != FORWARD


def test_player_without_noise_is_the_expert():
    generator = np.random.default_rng(3)
    state = generator.bit_generator.state
    player, expert = PerturbedExpert(generator, view="full"), Expert("full")
    for _ in range(50):
        seen = around(right=[(0.0, 0.0)], wrong=[(-100.0, -300.0)])
        assert player.act(seen) == (best := expert.act(seen), best)
    assert generator.bit_generator.state == state


def flawed_actions(episodes, seen, **flaws):
    """Executed actions and the expert's own: two (episodes, 40). After more steps it would seem to be stuck."""
    players = [PerturbedExpert(np.random.default_rng(number), view="full", **flaws) for number in range(episodes)]
    return np.array([[player.act(seen) for _ in range(40)] for player in players]).transpose(2, 0, 1)


def test_noise_is_uniform_and_keeps_expert_labels():
    taken, best = flawed_actions(15, around(right=[(-328.0, -448.0)]), noise=1.0)
    assert np.bincount(taken.ravel(), minlength=5).min() > 80 and set(best.ravel()) == {LEFT}


def test_perturbed_player_targets_wrong_items_for_a_while():
    """A right item lies to the left, a wrong one to the right."""
    seen = around(right=[(-328.0, -448.0)], wrong=[(72.0, -448.0)])
    taken, best = flawed_actions(200, seen, perturbation=0.3)
    assert set(best.ravel()) == {LEFT} and set(taken.ravel()) == {LEFT, RIGHT}
    assert (taken == RIGHT).mean() == pytest.approx(0.3, abs=0.06)
    assert (taken[:, 0] == RIGHT).mean() == pytest.approx(0.3, abs=0.1), "from the first step on"
    changes = (taken[:, 1:] != taken[:, :-1]).mean()
    assert changes == pytest.approx(2 * 0.3 * 0.7 / PERTURBATION_STEPS, rel=0.2)
    taken, _ = flawed_actions(200, seen, perturbation=0.3, perturbation_steps=1)
    assert (taken == RIGHT).mean() == pytest.approx(0.3, abs=0.02)
    assert (taken[:, 1:] != taken[:, :-1]).mean() == pytest.approx(2 * 0.3 * 0.7, rel=0.05), "drawn again at every step"


def test_expert_adapts_to_executed_actions():
    """Turning speeds up over time, so the expert has to use the executed actions, not those it would have chosen."""
    told, flawless = Expert("full"), Expert("full")
    for _ in range(5):
        told.choose(around(right=[(0.0, -300.0)]))
        told.record_action(LEFT)
        flawless.record_action(LEFT)
    assert (told._turn, told._turned) == (flawless._turn, flawless._turned) == (1.0, 10)


def test_expert_gives_up_unreachable_target():
    """It walks without moving: after 45 steps it goes elsewhere for 25, then to another item."""
    expert = Expert("full")
    there = around(right=[(-128.0, -300.0), (-428.0, -300.0)])
    actions = [expert.act(there) for _ in range(75)]
    assert set(actions[:44]) == {FORWARD} and set(actions[70:]) == {LEFT}
