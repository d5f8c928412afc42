"""The games as the agent plays them: pictures, automatic button presses, seeds, ends, many at once."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("ale_py")

import ale_py
from ale_py import roms
from gymnasium.utils.env_checker import check_env

from Atari import games
from Atari.console import Console
from Atari.env import ENV_ID, AtariEnv, AtariVectorEnv
from Atari.games import GAMES, game
from RATE_model.data import resize
from RATE_model.errors import UserError

NOOP, FIRE, RIGHT = 0, 1, 2
BALL_ROW, PADDLE = 101, 72  # of Breakout's memory


@pytest.fixture(scope="module")
def breakout():
    return AtariEnv("Breakout", render_mode="rgb_array")


def play(env, actions, seed=0):
    """Observations, rewards, lives and ends of an episode."""
    observation, info = env.reset(seed=seed)
    steps = [(observation, 0.0, info["lives"], False, False)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(int(action))
        steps.append((observation, reward, info["lives"], terminated, truncated))
    return [np.array(column) for column in zip(*steps, strict=True)]


def area_mean(picture):
    """Divide every row into 84 parts and take the mean of each; then the same for columns."""
    for _ in range(2):
        rows = len(picture)
        picture = np.repeat(picture.astype(np.float64), 84, axis=0).reshape(84, rows, -1).mean(axis=1).T
    return picture


def test_the_games_are_those_of_the_table():
    for one in GAMES.values():
        assert len(Console(one)._actions) == one.actions
        scores = np.array([one.random_score, one.human_score])
        np.testing.assert_allclose(one.normalised_score(scores), [0, 100])
    assert [one.target_return for one in GAMES.values()] == [180, 14000, 1150, 20]
    assert game("pong") is GAMES["Pong"]
    other = game("spaceInvaders")
    assert (other.name, other.rom, other.actions) == ("SpaceInvaders", "space_invaders", 6)
    assert other.target_return is None and other.normalised_score(100) is None
    with pytest.raises(UserError, match=r"Brakeout.*Breakout, Qbert, Seaquest, Pong.*any ALE game works with --game"):
        game("Brakeout")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[atari\]'"):
        AtariEnv("Breakout")
    assert games.game("Breakout").actions == 4, "what is known of the four needs no package"


@pytest.mark.parametrize("height", [210, 250])
def test_pictures_are_downscaled_by_area(height):
    picture = np.random.default_rng(0).integers(0, 256, (height, 160), dtype=np.uint8)
    found = resize.area_mean(picture, (84, 84))
    assert found.dtype == np.uint8 and np.abs(found - area_mean(picture)).max() < 0.501


def test_pictures_equal_the_emulator(breakout):
    """Against a loop of our own over ale-py's frames: no-ops, FIRE, four frames each, the brighter of the last two."""
    actions = np.random.default_rng(1).integers(0, 4, 100)
    observations, rewards, *_ = play(breakout, actions, seed=5)
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path("breakout"))
    emulator.reset_game()
    for _ in range(np.random.default_rng(5).integers(1, 31)):
        emulator.act(ale_py.Action.NOOP)
    buttons = emulator.getMinimalActionSet()

    def decide(button):
        frames, points = [], 0
        for _ in range(4):
            points += emulator.act(buttons[button])
            frames.append(emulator.getScreenGrayscale())
        return area_mean(np.maximum(*frames[-2:])), points

    expected, lives = [decide(FIRE)], emulator.lives()
    for action in actions:
        picture, points = decide(action)
        if emulator.lives() < lives:
            lives = emulator.lives()
            picture, more = decide(FIRE)
            points += more
        expected.append((picture, points))
    for found, (picture, _) in zip(observations, expected, strict=True):
        assert np.abs(found[-1] - picture).max() <= 0.501
    assert rewards.tolist() == [points for _, points in expected]
    assert lives < 5


def test_the_published_opening(breakout):
    """Unlike the default: the first picture repeated, FIRE pressed twice, both pictures when a life is lost."""
    published = AtariEnv("Breakout", opening="published")
    quiet = AtariEnv("Breakout", noops=30)
    quiet.console.switch_on(int(np.random.default_rng(5).integers(1, 31)))
    idle = quiet.console.observation()
    observation, info = published.reset(seed=5)
    np.testing.assert_array_equal(observation[:2], [idle, idle])
    quiet.console.press(FIRE)
    np.testing.assert_array_equal(observation[2], quiet.console.observation())
    quiet.console.press(FIRE)
    np.testing.assert_array_equal(observation[3], quiet.console.observation())
    while info["lives"] == 5:
        before = observation
        observation, _, _, _, info = published.step(NOOP)
        quiet.console.press(NOOP)
    np.testing.assert_array_equal(observation[:2], before[2:])
    np.testing.assert_array_equal(observation[2], quiet.console.observation())
    quiet.console.press(FIRE)
    np.testing.assert_array_equal(observation[3], quiet.console.observation())
    with pytest.raises(UserError, match="opening is 'white'"):
        AtariEnv("Breakout", opening="white")


def test_four_pictures_are_stacked_oldest_first(breakout):
    observations, *_ = play(breakout, [FIRE, RIGHT, RIGHT, NOOP, NOOP])
    assert observations.shape == (6, 4, 84, 84) and observations.dtype == np.uint8
    assert not observations[0, :3].any() and observations[0, 3].max() > 100
    np.testing.assert_array_equal(observations[1:, :3], observations[:-1, 1:])
    assert (observations[1:, 3] != observations[:-1, 3]).any(axis=(1, 2)).all()
    single = AtariEnv("Breakout", frame_stack=1)
    np.testing.assert_array_equal(play(single, [FIRE, RIGHT])[0][:, 0], observations[:3, 3])


def test_fire_is_pressed_at_the_start_and_after_each_life(breakout):
    def ball():
        return breakout.console.memory()[BALL_ROW]

    breakout.reset(seed=3)
    assert ball() > 0, "the ball is in play"
    lives, returned, steps = [5], 0.0, 0
    while lives[-1] > 0:
        _, reward, terminated, truncated, info = breakout.step(NOOP)
        returned, steps = returned + reward, steps + 1
        if info["lives"] < lives[-1]:
            lives.append(info["lives"])
            assert terminated == (info["lives"] == 0) and not truncated
            assert terminated or 100 < ball() < 130, "the next ball has just begun to fall"
    assert lives == [5, 4, 3, 2, 1, 0] and steps < 500
    last = breakout.step(RIGHT)
    np.testing.assert_array_equal(breakout.step(NOOP)[0], last[0])
    assert last[1:4] == (0.0, True, False)
    games_without = AtariEnv("Freeway")
    assert games_without.console.fire is None and games_without.reset(seed=0)[1] == {"lives": 0}


def test_an_episode_is_a_function_of_its_seed_and_actions(breakout):
    actions = np.random.default_rng(0).integers(0, 4, 80)
    first = play(breakout, actions, seed=7)
    play(breakout, actions[:33], seed=8)
    for one, other in zip(first, play(breakout, actions, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(first, play(AtariEnv("Breakout"), actions, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)
    starts = [play(breakout, [NOOP] * 20, seed=seed)[0][-1] for seed in range(6)]
    assert len({start.tobytes() for start in starts}) > 1, "seeds begin at different frames"
    still = AtariEnv("Breakout", noops=0)
    np.testing.assert_array_equal(play(still, [NOOP] * 20, 1)[0], play(still, [NOOP] * 20, 2)[0])


def test_actions_stick_frame_by_frame(breakout, monkeypatch):
    pressed = []
    monkeypatch.setattr(breakout.console, "_act", lambda action: pressed.append(action.name) or 0)
    left, right = "LEFT", "RIGHT"
    patterns = {
        (False, False, False, False): [right] * 4,
        (True, True, False, True): [left, left, right, right],
        (False, True, True, True): [right] * 4,
        (True, True, True, True): [left] * 4,
    }
    for stuck, expected in patterns.items():
        pressed.clear()
        breakout.console.press(RIGHT, before=3, stuck=np.array(stuck))
        assert pressed == expected


def test_sticky_actions_are_drawn_from_the_seed():
    free, sticky = AtariEnv("Breakout"), AtariEnv("Breakout", sticky=0.25)

    def paddles(env, seed):
        env.reset(seed=seed)
        way = []
        for action in np.random.default_rng(1).integers(0, 4, 30):
            env.step(int(action))
            way.append(int(env.console.memory()[PADDLE]))
        return way

    assert paddles(sticky, 2) == paddles(sticky, 2) != paddles(free, 2)
    assert paddles(sticky, 2) != paddles(sticky, 3)
    glued = AtariEnv("Breakout", sticky=0.999)
    assert len(set(paddles(glued, 2))) == 1


def test_episodes_are_truncated():
    env = AtariEnv("Pong", max_steps=3)
    *_, terminated, truncated = play(env, [NOOP] * 5)
    assert truncated.tolist() == [False] * 3 + [True] * 3 and not terminated.any()


def test_gymnasium_knows_the_game(breakout):
    env = gymnasium.make(ENV_ID, game="Pong")
    assert env.observation_space.shape == (4, 84, 84) and env.action_space.n == 6
    check_env(env.unwrapped, skip_render_check=True)
    picture = breakout.render()
    assert (
        picture.shape == (210, 160, 3)
        and picture.dtype == np.uint8
        and picture.any()
        and env.unwrapped.render() is None
    )
    many = gymnasium.make_vec(ENV_ID, 2, vectorization_mode="vector_entry_point", game="Pong")
    assert many.reset(seed=0)[0].shape == (2, 4, 84, 84)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sticky": 1.0}, "sticky is 1.0"),
        ({"noops": -1}, "noops -1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"frame_stack": 0}, "frame_stack 0"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(UserError, match=message):
        AtariEnv("Breakout", **options)


def test_bad_actions_and_seeds(breakout):
    for action in (-1, 4):
        with pytest.raises(ValueError, match="between 0 and 3"):
            breakout.step(action)
    with pytest.raises(ValueError, match="seed"):
        breakout.reset(seed=2**63)


def test_vector_equals_single_games(breakout):
    many, seeds = AtariVectorEnv(3, "Breakout", max_steps=25), [4, 9, 4]
    actions = np.random.default_rng(0).integers(0, 4, (40, 3))
    actions[:, 2] = actions[:, 0]
    observations, info = many.reset(seed=seeds)
    single = [play(breakout, actions[:25, row], seeds[row]) for row in range(3)]
    found = [(observations, np.zeros(3), info["lives"], np.zeros(3, dtype=bool))]
    for number, row in enumerate(actions, start=1):
        observations, rewards, terminated, truncated, info = many.step(row)
        found.append((observations, rewards, info["lives"], terminated))
        assert (truncated == (number >= 25)).all()
    found = [np.array(column) for column in zip(*found, strict=True)]
    for row, expected in enumerate(single):
        for of_all, of_one in zip(found, expected, strict=False):
            np.testing.assert_array_equal(of_all[:26, row], of_one)
        assert (found[0][26:, row] == expected[0][-1]).all(), "it stays as it ended"
    assert not found[1][26:].any() and not found[3].any()
    observations, _ = many.reset(seed=seeds, options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(observations[1], single[1][0][0])
    np.testing.assert_array_equal(observations[0], single[0][0][25])
    *_, truncated, _ = many.step(np.zeros(3, dtype=np.int64))
    assert truncated.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="between 0 and 3"):
        many.step(np.full(3, 4))
    with pytest.raises(ValueError, match="seeds"):
        many.reset(seed=[1, 2, -3])
