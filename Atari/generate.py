"""Making trajectories of an Atari game with its scripted player, on all cores.

Episode n has seeds of its own and the n-th of the noise levels, which take turns; so it is the same whichever process
plays it. An interruption costs the episodes that are being played (`RATE_model.data.parts`).

The environment is the one of the evaluation, FIRE pressed for the agent included; its single frames are stored, once
each: the four that an agent sees are those of a step and of the three before it, black before the first. Points are
not clipped.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Atari.console import SIZE
from Atari.env import ENV_ID, PUBLISHED_CAP, AtariEnv
from Atari.experts import EXPERT_VERSION, expert, player_class
from Atari.games import ale_py
from Atari.games import game as game_of
from RATE_model.data.parts import Job, make_until
from RATE_model.data.writer import TrajectoryWriter

FRAME_SHAPE = (1, SIZE, SIZE)
FIRST_DATA_SEED = 1_000_000  # far above those of any evaluation
EXPERT_STREAM = 2  # of the generators of a seed


@dataclass(frozen=True)
class Recipe:
    """What the content of a dataset depends on, the number of steps aside."""

    game: str
    mix: tuple[float, ...]  # noise of the player; episode n has the n-th, and after the last comes the first
    sticky: float = 0.0  # probability that an action goes on for another frame
    max_steps: int = PUBLISHED_CAP  # decisions of an episode


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    frames: np.ndarray  # (T, 1, 84, 84) uint8, what the agent acts on
    actions: np.ndarray  # (T,) uint8
    rewards: np.ndarray  # (T,) float32, points
    lives: np.ndarray  # (T,) uint8, at the time of each frame
    terminated: bool


def generate(
    recipe: Recipe, transitions: int, path: Path, *, overwrite: bool = False, workers: int | None = None
) -> Path:
    """Make a file of trajectories. Its content is the same for any number of workers.

    A second process that is asked for the same file waits for the first, and takes what that made.

    Args:
        recipe: what is played.
        transitions: steps in the file.
        path: the file; it appears when it is complete.
        overwrite: replace a file that exists.
        workers: processes that play; None: one per core this process may use.

    Raises:
        UserError: the file exists and is not to be replaced, cannot be written, or the package ale-py is missing.
    """
    ale_py()  # a missing package shows here, not in a process
    described = {**asdict(recipe), "mix": list(recipe.mix), "expert_version": EXPERT_VERSION}
    job = Job(
        functools.partial(_play_part, recipe),
        {"observation_shape": FRAME_SHAPE, "observation_dtype": "uint8"},
        described | {"first_seed": FIRST_DATA_SEED, "ale_py": importlib.metadata.version("ale-py")},
        episodes_per_part=1,
    )
    returns: dict[float, list[float]] = {}
    attributes: dict[str, Any] = {
        "environment": ENV_ID,
        "generator": f"scripted player: {player_class(game_of(recipe.game)).description}",
        "rewards": "unclipped",
    }

    def note(episode: Mapping[str, Any]) -> None:
        if episode["unfinished"]:
            return  # nobody knows what it would have earned
        noise = recipe.mix[(int(episode["infos"]["seed"][0]) - FIRST_DATA_SEED) % len(recipe.mix)]
        returns.setdefault(noise, []).append(float(episode["rewards"].sum()))
        attributes["levels"] = [{"noise": level, **_statistics(values)} for level, values in returns.items()]

    return make_until(job, transitions, path, attributes=attributes, joined=note, overwrite=overwrite, workers=workers)


def _statistics(returns: list[float]) -> dict[str, float]:
    values = np.array(returns)
    return {
        "episodes": len(values),
        **{f"return_{name}": float(getattr(values, name)()) for name in ("mean", "std", "min", "max")},
    }


def _play_part(recipe: Recipe, writer: TrajectoryWriter, first: int, count: int) -> None:
    """Play episodes and write them."""
    for number in range(first, first + count):
        noise, seed = recipe.mix[number % len(recipe.mix)], FIRST_DATA_SEED + number
        episode = play(_environment(recipe.game, recipe.sticky, recipe.max_steps), seed, noise)
        steps = len(episode.actions)
        infos = {
            "lives": episode.lives,
            "noise": np.full(steps, noise, dtype=np.float32),
            "seed": np.full(steps, seed, dtype=np.int64),
        }
        writer.add_episode(episode.frames, episode.actions, episode.rewards, terminal=episode.terminated, infos=infos)


def play(env: AtariEnv, seed: int, noise: float) -> Episode:
    """The scripted player's episode of a seed."""
    player = expert(env.game, np.random.default_rng([seed, EXPERT_STREAM]), noise=noise)
    _, info = env.reset(seed=seed)
    player.reset(env)
    terminated = truncated = False
    steps = []
    while not (terminated or truncated):
        frame, lives, action = env.frame.copy(), info["lives"], player.act(env)
        _, reward, terminated, truncated, info = env.step(action)
        steps.append((frame, action, reward, lives))
    frames, actions, rewards, lives = zip(*steps, strict=True)
    return Episode(
        np.stack(frames)[:, None],
        np.array(actions, dtype=np.uint8),
        np.array(rewards, dtype=np.float32),
        np.array(lives, dtype=np.uint8),
        terminated,
    )


@functools.lru_cache(maxsize=1)
def _environment(game: str, sticky: float, max_steps: int) -> AtariEnv:
    """One game for all episodes of a process, as it takes a tenth of a second to switch on."""
    return AtariEnv(game, sticky=sticky, max_steps=max_steps, frame_stack=1)
