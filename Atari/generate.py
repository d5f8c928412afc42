"""Making trajectories of an Atari game with its scripted player, on all cores.

Episode n has seeds of its own and the n-th of the noise levels, which take turns; so it is the same whichever process
plays it. It is kept in a file in ``<name>.parts`` beside the file wanted. When there are enough steps, the episodes are
joined in order, the last of them cut where the wished number is reached, and removed. A run that was interrupted goes
on with the episodes it finds. While they are joined, the data is on disk twice.

The environment is the one of the evaluation, FIRE pressed for the agent included; its single frames are stored, once
each: the four that an agent sees are those of a step and of the three before it, black before the first. Points are
not clipped.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from Atari.console import SIZE
from Atari.env import ENV_ID, AtariEnv
from Atari.experts import EXPERT_VERSION, expert, player_class
from Atari.games import ale_py
from Atari.games import game as game_of
from RATE_model.errors import UserError
from RATE_model.processes import available_cores, check_writable, in_order, only_one
from RATE_model.trajectories import TrajectoryFile, TrajectoryWriter

FRAME_SHAPE = (1, SIZE, SIZE)
FIRST_DATA_SEED = 1_000_000  # far above those of any evaluation
EXPERT_STREAM = 2  # of the generators of a seed

_RECIPE = "recipe"  # attribute of a part: what it was made from
_INFOS = ("lives", "noise", "seed")


@dataclass(frozen=True)
class Recipe:
    """What the content of a dataset depends on, the number of steps aside."""

    game: str
    mix: tuple[float, ...]  # noise of the player; episode n has the n-th, and after the last comes the first
    sticky: float = 0.0  # probability that an action goes on for another frame
    max_steps: int = 7000  # decisions of an episode


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    frames: np.ndarray  # (T, 1, 84, 84) uint8, what the agent acts on
    actions: np.ndarray  # (T,) uint8
    rewards: np.ndarray  # (T,) float32, points
    lives: np.ndarray  # (T,) uint8, at the time of each frame
    terminated: bool


@dataclass
class _Level:
    """What the file says of the episodes of one noise level."""

    noise: float
    returns: list[float] = field(default_factory=list)
    steps: int = 0

    def add(self, rewards: np.ndarray) -> None:
        self.returns.append(float(rewards.sum()))
        self.steps += len(rewards)

    def described(self) -> dict[str, Any]:
        returns = np.array(self.returns)
        statistics = {name: float(getattr(returns, name)()) for name in ("mean", "std", "min", "max")}
        return {
            "noise": self.noise,
            "episodes": len(returns),
            "steps": self.steps,
            **{f"return_{name}": value for name, value in statistics.items()},
        }


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
    from RATE_model.evaluation import progress_bar  # late, as torch comes with it: the processes that play do without

    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists; add --overwrite true to replace it.")
    ale_py()  # a missing package shows here, not in a process
    check_writable(path)
    folder = path.with_name(f"{path.name}.parts")
    with only_one(path, f"another process is making '{path}'; waiting for it") as waited:
        if waited and path.exists():
            return path
        found = len(list(folder.glob("*.h5")))
        if found:
            print(f"going on with the {found} episodes in '{folder}' as far as they are of the same kind", flush=True)
        episodes, steps = 0, 0
        lengths = in_order(
            functools.partial(make_episode, recipe, folder), itertools.count(), workers or available_cores(), ahead=1
        )
        with contextlib.closing(lengths), progress_bar(total=transitions, desc="playing", unit="step") as bar:
            try:
                while steps < transitions:
                    length = next(lengths)
                    episodes, steps = episodes + 1, steps + length
                    bar.update(length)
            except KeyboardInterrupt:
                print(f"What is done is kept in '{folder}'; the same command goes on from there.", flush=True)
                raise
        _join([_part_path(folder, number) for number in range(episodes)], recipe, transitions, path)
        shutil.rmtree(folder)
    return path


def make_episode(recipe: Recipe, folder: Path, number: int) -> int:
    """Make the file of one episode, unless it is there; returns its steps.

    Raises:
        UserError: the file cannot be written.
    """
    path = _part_path(folder, number)
    with contextlib.suppress(UserError), TrajectoryFile(path) as file:
        if file.attributes.get(_RECIPE) == _described(recipe):
            return file.num_steps
    noise, seed = recipe.mix[number % len(recipe.mix)], FIRST_DATA_SEED + number
    episode = play(_environment(recipe.game, recipe.sticky, recipe.max_steps), seed, noise)
    steps = len(episode.actions)
    infos = {
        "lives": episode.lives,
        "noise": np.full(steps, noise, dtype=np.float32),
        "seed": np.full(steps, seed, dtype=np.int64),
    }
    with _writer(path, {_RECIPE: _described(recipe)}) as writer:
        writer.add_episode(episode.frames, episode.actions, episode.rewards, terminal=episode.terminated, infos=infos)
    return steps


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


def _writer(path: Path, attributes: dict[str, Any]) -> TrajectoryWriter:
    return TrajectoryWriter(path, observation_shape=FRAME_SHAPE, observation_dtype="uint8", attributes=attributes)


def _described(recipe: Recipe) -> dict[str, Any]:
    """A recipe and whatever else decides what comes of it."""
    version = importlib.metadata.version("ale-py")
    return {**asdict(recipe), "mix": list(recipe.mix), "expert_version": EXPERT_VERSION, "ale_py": version}


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"episode_{number:06d}.h5"


def _join(parts: list[Path], recipe: Recipe, transitions: int, path: Path) -> None:
    """Write so many steps of all episodes, in order, into one file."""
    from RATE_model.evaluation import progress_bar

    levels = {noise: _Level(noise) for noise in recipe.mix}
    described: list[dict[str, Any]] = []  # filled below; the writer reads it when it ends
    attributes = {
        "environment": ENV_ID,
        "generator": f"scripted player: {player_class(game_of(recipe.game)).description}",
        **_described(recipe),
        "first_seed": FIRST_DATA_SEED,
        "rewards": "unclipped",
        "levels": described,
    }
    left = transitions
    with _writer(path, attributes) as writer, progress_bar(total=transitions, desc="joining", unit="step") as bar:
        for number, part in enumerate(parts):
            with TrajectoryFile(part), h5py.File(part) as file:  # the former checks, and loads what decompresses
                chosen = slice(0, left)
                frames, actions, rewards = (file[name][chosen] for name in ("observations", "actions", "rewards"))
                infos = {name: file[f"infos/{name}"][chosen] for name in _INFOS}
                terminal = bool(file["terminals"][chosen][-1])
            writer.add_episode(frames, actions, rewards, terminal=terminal, infos=infos)
            levels[recipe.mix[number % len(recipe.mix)]].add(rewards)
            left -= len(rewards)
            bar.update(len(rewards))
        described.extend(level.described() for level in levels.values() if level.returns)
