"""Making Memory Maze trajectories with the scripted experts, on all cores.

Step t of an episode holds the picture observations[t], the action actions[t] taken on it, and the reward rewards[t] of
that action; the picture after the last action is not kept. Every episode has its own seed, from 1,000,000 on, which
no evaluation uses. Episodes end only at their full length.

Also stored per step, at the time of the picture: ``infos/target`` which ball is the target, ``infos/agent_pos``
and ``infos/agent_dir`` x and y in cells, ``infos/random`` whether the action was a random one, ``infos/expert_action``
what the player would have done if it did not err; and, the same at every step of an episode, ``infos/seed`` and
``infos/player``, the number of the player in the recipe's mix.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MemoryMaze.MemoryMaze_src.env import EPISODE_STEPS, NAME, OBSERVATION_SHAPE, MemoryMazeEnv, env_id
from MemoryMaze.MemoryMaze_src.experts import EXPERTS
from MemoryMaze.MemoryMaze_src.graphics import maze_tasks
from MemoryMaze.MemoryMaze_src.privileged import PrivilegedRecorder
from RATE_model.acting.driver import DriverChoice, driver_attributes, generator_of
from RATE_model.data.maker import Drive, record
from RATE_model.data.parts import Job, make_in_parts
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError

FIRST_DATA_SEED = 1_000_000
PART = 5  # episodes
# Players that act on what they saw, so that a learner with the same view and memory can act the same way. Random
# actions show how to continue from where no expert would go, and spread the returns.
DEFAULT_MIX = ("explorer:0:0.4", "explorer:0.1:0.4", "explorer:0.3:0.2")
EXPERTS_VERSION = 3  # increment when a seed gives different actions or labels: parts of other versions are not reused

INFOS_VERSION = 2  # increment when the stored infos change: parts of other versions are not reused

_EXPERT_STREAM = 1  # one of the random streams of a seed


@dataclass(frozen=True)
class PlayerOfMix:
    """One player of a dataset's mix.

    Attributes:
        kind: one of `EXPERTS`.
        noise: probability of a random action at each step.
        share: of the episodes, relative to the shares of the others.
    """

    kind: str
    noise: float
    share: float

    @classmethod
    def of(cls, text: str, *, flag: str = "mix") -> PlayerOfMix:
        """The player that ``EXPERT:NOISE:SHARE`` describes. Raises a `UserError` that names the flag."""
        kind, *numbers = text.split(":")
        with contextlib.suppress(ValueError):
            noise, share = (float(number) for number in numbers)
            if kind in EXPERTS and 0 <= noise <= 1 and 0 < share < float("inf"):
                return cls(kind, noise, share)
        raise UserError(
            f"--{flag} {text}: must be EXPERT:NOISE:SHARE, such as explorer:0.1:1, with EXPERT {' or '.join(EXPERTS)}, "
            "NOISE between 0 and 1 and SHARE above 0"
        )


@dataclass(frozen=True)
class Recipe:
    """Everything a dataset depends on except its number of episodes."""

    size: int = 9  # cells of a side
    steps: int = EPISODE_STEPS[9]  # of every episode
    mix: tuple[str, ...] = DEFAULT_MIX  # players, as EXPERT:NOISE:SHARE
    perturbation: float = 0.0  # share of time in which players walk to a random ball
    driver: DriverChoice | None = None  # the agent that moves while the players label

    @property
    def players(self) -> tuple[PlayerOfMix, ...]:
        """The players of the mix."""
        return tuple(PlayerOfMix.of(text) for text in self.mix)

    @property
    def first_seed(self) -> int:
        """First seed of the episodes; the others count up from it."""
        return FIRST_DATA_SEED if self.driver is None else self.driver.first_seed

    def assignment(self, episodes: int) -> np.ndarray:
        """Which player plays each episode, (episodes,) int64.

        Always the player farthest below its share, ties going to the first: for any number of episodes, each is within
        one episode of its share.
        """
        shares = np.array([player.share for player in self.players])
        shares /= shares.sum()
        played, chosen = np.zeros(len(shares)), np.zeros(episodes, dtype=np.int64)
        for number in range(episodes):
            chosen[number] = np.argmax(shares * (number + 1) - played)
            played[chosen[number]] += 1
        return chosen


def generate(recipe: Recipe, episodes: int, path: Path, *, overwrite: bool = False, workers: int | None = None) -> Path:
    """Make a file of trajectories; see `DataMaker.make`."""
    counts = np.bincount(recipe.assignment(episodes), minlength=len(recipe.mix))
    if not counts.all():
        raise UserError(
            f"--mix {recipe.mix[counts.argmin()]}: this player gets none of the {episodes} episodes; raise its SHARE "
            "or --episodes, or leave it out"
        )
    maze_tasks()  # fails here, not in a worker, if a package is missing
    job = Job(
        functools.partial(play_part, recipe),
        {"observation_shape": OBSERVATION_SHAPE, "observation_dtype": "uint8", "channels_last": True, "level": 7},
        recipe={
            **{name: value for name, value in asdict(recipe).items() if name != "driver"},
            "mix": list(recipe.mix),
            "experts": EXPERTS_VERSION,
            "infos": INFOS_VERSION,
            "simulation": simulation(),
            **driver_attributes(recipe.driver),
        },
        episodes_per_part=PART,
    )
    attributes = {
        "environment": env_id(recipe.size),
        "generator": generator_of(recipe.driver, "scripted experts"),
        "first_seed": recipe.first_seed,
        "last_seed": recipe.first_seed + episodes - 1,
    }
    return make_in_parts(job, episodes, path, attributes=attributes, overwrite=overwrite, workers=workers)


def simulation() -> dict[str, str]:
    """The versions of the packages that an episode depends on."""
    return {name: importlib.metadata.version(name) for name in ("memory-maze", "dm_control", "mujoco", "labmaze")}


def play_part(recipe: Recipe, writer: TrajectoryWriter, first: int, count: int) -> None:
    """Play and write episodes first to first + count - 1."""
    assigned = recipe.assignment(first + count)
    maze = MemoryMazeEnv(recipe.size, max_steps=recipe.steps, privileged=True)
    with contextlib.closing(maze):
        for number in range(first, first + count):
            player, seed = assigned[number], recipe.first_seed + number
            episode = play(maze, recipe.players[player], seed, recipe.perturbation, recipe.driver)
            constant = {"seed": np.int64(seed), "player": np.uint8(player)}
            episode["infos"] |= {name: np.full(recipe.steps, value) for name, value in constant.items()}
            writer.add_episode(**episode)


def play(
    maze: MemoryMazeEnv, player: PlayerOfMix, seed: int, perturbation: float = 0.0, driver: DriverChoice | None = None
) -> dict[str, Any]:
    """An episode of a player, in the maze of a seed, perturbed in a share of the time; see `record` and the module.

    A `driver` moves instead of the player, which then makes no errors.
    """
    generator = np.random.default_rng([seed, _EXPERT_STREAM])
    mind = EXPERTS[player.kind](generator, noise=player.noise, perturbation=perturbation)
    recorder = PrivilegedRecorder()

    def act(observation: np.ndarray, info: Mapping[str, Any], drive: Drive | None) -> tuple[int, dict[str, Any]]:
        noted = recorder.note(info)
        action = mind.act(dict(info), None if drive is None else drive(noted))
        return action, noted | {"random": np.uint8(mind.random), "expert_action": np.uint8(mind.best)}

    return record(maze, maze.reset(seed=seed), act, None if driver is None else driver.driver(NAME, seed))
