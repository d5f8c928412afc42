"""Make trajectories of an Atari game with its scripted player, on all cores.

Episode n has its own seeds, and noise levels alternate, so it is the same whichever process plays it. An interruption
loses the episodes that are being played (`RATE_model.data.parts`).

The environment is that of the evaluation and also presses FIRE for the player. Each frame is stored once; the four that
an agent sees are those of a step and the three before it, black before the first. Points are not clipped.
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
from RATE_model.data.maker import Drive, record
from RATE_model.data.parts import Job, make_until
from RATE_model.data.writer import TrajectoryWriter

FRAME_SHAPE = (1, SIZE, SIZE)
FIRST_DATA_SEED = 1_000_000  # far above the seeds of any evaluation
EXPERT_STREAM = 2  # one of the random streams of a seed


@dataclass(frozen=True)
class Recipe:
    """Everything a dataset depends on except its number of steps."""

    game: str
    mix: tuple[float, ...]  # noise levels of the player; episodes cycle through them
    sticky: float = 0.0  # probability of repeating the previous action, per frame
    max_steps: int = PUBLISHED_CAP  # decisions of an episode


def described(recipe: Recipe) -> dict[str, Any]:
    """The attributes by which a file says what was played, and by which version of the players."""
    return {**asdict(recipe), "mix": list(recipe.mix), "expert_version": EXPERT_VERSION}


def generate(
    recipe: Recipe, transitions: int, path: Path, *, overwrite: bool = False, workers: int | None = None
) -> Path:
    """Make a file of this many steps; see `DataMaker.make`."""
    ale_py()  # fails here, not in a worker, if the package is missing
    job = Job(
        functools.partial(_play_part, recipe),
        {"observation_shape": FRAME_SHAPE, "observation_dtype": "uint8"},
        described(recipe) | {"first_seed": FIRST_DATA_SEED, "ale_py": importlib.metadata.version("ale-py")},
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
            return  # its return would be unknown
        noise = recipe.mix[(int(episode["infos"]["seed"][0]) - FIRST_DATA_SEED) % len(recipe.mix)]
        returns.setdefault(noise, []).append(float(episode["rewards"].sum()))
        attributes["levels"] = [{"noise": level, **_statistics(values)} for level, values in returns.items()]

    return make_until(job, transitions, path, attributes=attributes, on_join=note, overwrite=overwrite, workers=workers)


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
        writer.add_episode(**play(_environment(recipe.game, recipe.sticky, recipe.max_steps), seed, noise))


def play(env: AtariEnv, seed: int, noise: float) -> dict[str, Any]:
    """The scripted player's episode of a seed; see `record`. Also records the lives at each frame, noise and seed."""
    player = expert(env.game, np.random.default_rng([seed, EXPERT_STREAM]), noise=noise)

    def act(frame: np.ndarray, info: Mapping[str, Any], drive: Drive | None) -> tuple[int, dict[str, Any]]:
        noted = {"lives": np.uint8(info["lives"]), "noise": np.float32(noise), "seed": np.int64(seed)}
        return player.act(env), noted

    return record(env, env.reset(seed=seed), act)


@functools.lru_cache(maxsize=1)
def _environment(game: str, sticky: float, max_steps: int) -> AtariEnv:
    """One game for all episodes of a process, because starting one takes a tenth of a second."""
    return AtariEnv(game, sticky=sticky, max_steps=max_steps, frame_stack=1)
