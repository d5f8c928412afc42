"""The players: what they can see, that they use nothing else, and that they find the balls."""

import contextlib

import numpy as np
import pytest

pytest.importorskip("scipy")

from MemoryMaze.MemoryMaze_src.env import MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.evaluate import UnrenderedMaze
from MemoryMaze.MemoryMaze_src.experts import EXPERTS, PERTURBATION_STEPS, Explorer, Planner, look
from MemoryMaze.MemoryMaze_src.navigation import REACH, Pilot, field

EAST, NORTH, WEST = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([-1.0, 0.0])
# Rows from the top down, as people read them: y grows upwards.
MAZE = """
    . . . . . . # # #
    . # # # # . # # #
    . # # # # . . . .
    . # . . . . # # .
    . . . . . . # # .
    # # . . . # # # .
    # # . # # # . . .
    # # . # # # . . .
    . . . . . . . . .
"""


def layout(text=MAZE):
    rows = [line.split() for line in text.split("\n") if line.strip()]
    return np.array(rows)[::-1] == "."


def drawing(cells):
    return "\n".join(" ".join("x" if cell else "-" for cell in row) for row in cells[::-1])


def situation(maze, place, direction, balls, target=0):
    return {
        "maze_layout": maze,
        "agent_pos": np.array(place, dtype=float),
        "agent_dir": np.array(direction, dtype=float),
        "targets_pos": np.array(balls, dtype=float),
        "target_index": target,
    }


def walk(player, maze, place, balls, steps, hidden=None):
    """Let a player act for some steps, with movements like those of the game; yields its situation, action and touches.

    ``hidden`` receives every situation and returns the one that the player sees instead.
    """
    place, angle, forward, left, target = np.array(place, dtype=float), 0.3, 0.0, 0.0, 0
    for _ in range(steps):
        info = situation(maze, place, (np.cos(angle), np.sin(angle)), balls, target)
        action = player.act(info if hidden is None else hidden(info))
        before, turned = forward, left
        forward, left = float(action in (1, 4, 5)), float(action in (2, 4)) - float(action in (3, 5))
        angle += 0.255 * left + 0.065 * turned
        for axis in (0, 1):
            ahead = place.copy()
            ahead[axis] += (0.12 * forward + 0.13 * before) * (np.cos, np.sin)[axis](angle)
            x, y = np.floor(ahead).astype(int)
            if 0 <= x < len(maze) and 0 <= y < len(maze) and maze[y, x]:
                place = ahead
        touched = np.hypot(*(np.array(balls[target]) - place)) < 0.39
        yield info, action, touched
        if touched:
            target = (target + 1) % len(balls)


def test_view_contains_cells_in_line_of_sight():
    """From the west end of the corridor in the third row, looking east along it and around its last corner."""
    seen = look(layout(), np.array([5.5, 6.5]), EAST, np.array([[8.5, 6.5], [5.5, 3.5], [1.0, 8.0]]))
    nothing = ["- - - - - - - - -"]
    assert drawing(seen.free).split("\n") == 2 * nothing + ["- - - - - x x x x", "- - - - - - - - x"] + 5 * nothing
    assert (
        drawing(seen.walls).split("\n")
        == nothing + ["- - - - - - x x x"] + nothing + ["- - - - - - x x -"] + 5 * nothing
    )
    assert seen.balls.tolist() == [True, False, False]
    assert drawing(seen.searched).split("\n") == 2 * nothing + ["- - - - - x x x x"] + 6 * nothing


@pytest.mark.parametrize(
    ("place", "direction", "ball", "seen"),
    [
        ((2.5, 5.5), EAST, (4.5, 5.5), True),
        ((2.5, 5.5), WEST, (4.5, 5.5), False),  # behind
        ((2.5, 5.5), NORTH, (4.5, 5.5), False),  # beside
        ((2.5, 5.5), EAST, (4.5, 4.0), True),  # 37 degrees off
        ((2.5, 5.5), EAST, (4.3, 4.0), False),  # 40 degrees off, covered by the border
        ((0.5, 0.5), EAST, (8.5, 0.5), False),  # too far to recognise a ball
        ((0.5, 0.5), EAST, (8.3, 0.5), True),
        ((5.5, 4.5), NORTH, (7.5, 6.5), False),  # behind a wall
    ],
)
def test_balls_are_seen_only_in_line_of_sight(place, direction, ball, seen):
    sight = look(layout(), np.array(place), direction, np.array([ball]))
    assert sight.balls.tolist() == [seen]


def test_sight_depends_only_on_visible_cells():
    rng = np.random.default_rng(0)
    for _ in range(60):
        maze = rng.random((9, 9)) < 0.6
        place, angle, balls = rng.random(2) * 9, rng.random() * 7, rng.random((3, 2)) * 9
        direction = np.array([np.cos(angle), np.sin(angle)])
        maze[int(place[1]), int(place[0])] = True
        seen = look(maze, place, direction, balls)
        assert (seen.free <= maze).all() and (seen.walls <= ~maze).all() and seen.free.any()
        other = np.where(seen.free | seen.walls, maze, rng.random((9, 9)) < 0.5)
        again = look(other, place, direction, balls)
        np.testing.assert_array_equal(again.free, seen.free)
        np.testing.assert_array_equal(again.walls, seen.walls)


def test_explorer_uses_only_what_it_has_seen():
    """If only cells or balls that it never saw differ, it does the same; a player that knows them does not."""
    rng, balls = np.random.default_rng(1), [(8.5, 0.5), (0.5, 8.5), (2.5, 3.5)]

    def elsewhere(player):
        def change(info):
            seen = look(info["maze_layout"], info["agent_pos"], info["agent_dir"], info["targets_pos"])
            if (known := getattr(player, "known", None)) is not None:
                seen = seen | known
            maze = np.where(seen.free | seen.walls, info["maze_layout"], rng.random((9, 9)) < 0.5)
            # A ball that was moved must not come into view: outside the maze it is never visible.
            moved = np.where(seen.balls[:, None], info["targets_pos"], -5.0)
            return {**info, "maze_layout": maze, "targets_pos": moved}

        return change

    def actions(player, hidden):
        return [action for _, action, _ in walk(player, layout(), (4.5, 4.5), balls, 150, hidden)]

    def explorer():
        return Explorer(np.random.default_rng(0), noise=0.1)

    shown = explorer()
    assert actions(shown, elsewhere(shown)) == actions(explorer(), None)
    assert shown.known.balls.all() and (shown.known.free | shown.known.walls).mean() > 0.8
    blind = Planner(np.random.default_rng(0), noise=0.1)
    assert actions(blind, elsewhere(blind)) != actions(Planner(np.random.default_rng(0), noise=0.1), None)


def test_explorer_walks_straight_to_known_balls():
    """Its first round leads all over the maze; the planner needs none."""
    balls = [(8.5, 0.5), (0.5, 8.5), (2.5, 3.5)]
    times = {}
    for kind in EXPERTS:
        player = EXPERTS[kind](np.random.default_rng(0))
        touches = [touched for _, _, touched in walk(player, layout(), (4.5, 4.5), balls, 420)]
        times[kind] = np.diff(np.flatnonzero(touches), prepend=0)
    rounds = {kind: steps[: len(steps) // 3 * 3].reshape(-1, 3).sum(axis=1) for kind, steps in times.items()}
    assert len(rounds["explorer"]) >= 2
    assert rounds["explorer"][0] > 1.05 * rounds["planner"][0]
    assert rounds["explorer"][1] < 1.15 * rounds["planner"][1]


def test_cells_seen_from_afar_are_searched():
    """From its end the whole corridor is visible, but no ball at the other end."""
    maze = np.zeros((15, 15), dtype=bool)
    maze[7] = True
    assert look(maze, np.array([0.5, 7.5]), EAST, np.array([[13.5, 7.5]])).free[7].all()
    player = Explorer(np.random.default_rng(0))
    assert any(touched for _, _, touched in walk(player, maze, (0.5, 7.5), [(13.5, 7.5)], 80))


def test_paths_avoid_walls_and_end_at_the_goal():
    maze = layout("""
        . . . . .
        . # # # .
        . # . # .
        . # # # .
        . . . . .
    """)
    ways = field(maze, np.array([[2.5, 0.5]]))
    points = {
        place: ways.distance[int(place[1] * 8), int(place[0] * 8)] for place in ((2.5, 0.5), (0.5, 2.5), (4.5, 0.5))
    }
    assert points[2.5, 0.5] == 0 and points[4.5, 0.5] == pytest.approx(2 - REACH, abs=0.1)
    assert 2.8 - REACH < points[0.5, 2.5] < 4.2 - REACH
    assert not ways.reachable(np.array([2.5, 2.5])) and ways.reachable(np.array([0.5, 4.5]))
    # Along the western side, where no corner is near, the path leads south.
    assert ways.heading[20, 4] == pytest.approx(-np.pi / 2, abs=0.3)
    assert Pilot().choose(ways, np.array([0.5, 3.5]), np.array([0.0, -1.0])) == 1
    assert Pilot().choose(ways, np.array([0.5, 3.5]), np.array([1.0, -1.0]) / 2**0.5) in (3, 5)


def test_perturbed_player_walks_to_balls_drawn_at_random():
    """The target ball is west of a player in a long corridor, the other one east."""
    corridor = np.zeros((9, 9), dtype=bool)
    corridor[4] = True
    still = situation(corridor, (4.5, 4.5), (0.0, 1.0), [(0.5, 4.5), (8.5, 4.5)])
    west = Planner(np.random.default_rng(0)).act(still)
    east = Planner(np.random.default_rng(0)).act(still | {"target_index": 1})
    assert west != east
    began, changes, steps = [], 0, 0
    for number in range(120):
        player = Planner(np.random.default_rng(number), perturbation=0.6)
        assert (first := player.act(still)) in (west, east) and player.best == west and not player.random
        began.append(first == east)
        lures = [(player.act(still), player._lure)[1] for _ in range(20)]
        changes += sum(one != other for one, other in zip(lures, lures[1:], strict=False))
        steps += len(lures) - 1
    assert np.mean(began) == pytest.approx(0.3, abs=0.1), "in half of its spells the ball drawn is the one asked for"
    # Two periods in a row, with shares 0.4 unperturbed, 0.3 and 0.3, differ with probability 0.66.
    assert changes / steps == pytest.approx(0.66 / PERTURBATION_STEPS, rel=0.3)


def test_player_is_optimal_except_for_noise():
    still = situation(layout(), (4.5, 4.5), EAST, [(2.5, 3.5), (8.5, 0.5)])
    plain, noisy = (Planner(np.random.default_rng(5), noise=noise) for noise in (0.0, 0.5))
    for _ in range(20):
        assert plain.act(still) == plain.best
        assert noisy.act(still) == noisy.best or noisy.random


def test_noise_is_the_share_of_random_actions():
    player, still = Planner(np.random.default_rng(0), noise=0.3), situation(layout(), (4.5, 4.5), EAST, [(2.5, 3.5)])
    drawn = [(player.act(still), player.random) for _ in range(400)]
    assert 0.22 < np.mean([random for _, random in drawn]) < 0.38
    assert {action for action, random in drawn if random} == set(range(6))
    assert 0 not in {action for action, random in drawn if not random}


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(("kind", "steps"), [("planner", 40), ("explorer", 160)])
def test_players_find_a_ball_in_the_game(kind, steps):
    with contextlib.closing(MemoryMazeEnv(privileged=True)) as maze:
        _, info = maze.reset(seed=0)
        player, total = EXPERTS[kind](np.random.default_rng(0)), 0.0
        for _ in range(steps):
            _, reward, _, _, info = maze.step(player.act(info))
            total += reward
    assert total >= 1


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("seed", [1_000_163, 1_000_128])
def test_the_explorer_does_not_get_stuck(seed):
    """At a wall that it faces; and, having searched the nearer of two places, on its way to the other."""
    with contextlib.closing(UnrenderedMaze(privileged=True)) as maze:
        _, info = maze.reset(seed=seed)
        player, total = Explorer(np.random.default_rng([seed, 1])), 0.0
        for _ in range(500):
            _, reward, _, _, info = maze.step(player.act(info))
            total += reward
    assert total >= 5
