"""Making ViZDoom-Two-Colors trajectories with the scripted expert, on all cores.

The episodes are divided into parts of ``PART`` episodes with seeds of their own, so that a part is the same whichever
process makes it. Each is a file in ``<name>.parts`` beside the file wanted; when all are there, they are joined in
order and removed. A run that was interrupted goes on with the parts it finds. While they are joined, the data is on
disk twice.

The colours alternate: an episode takes the next seed of the colour that it needs. Only episodes of the full length are
kept, as only they can be trained on; where the player dies before, the next seed of the colour is played, and the drops
are counted.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from RATE_model.errors import UserError
from RATE_model.processes import available_cores, check_writable, in_processes
from RATE_model.trajectories import TrajectoryFile, TrajectoryWriter
from VizDoom.VizDoom_src.engine import vizdoom
from VizDoom.VizDoom_src.env import ENV_ID, OBSERVATION_SHAPE, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.expert import Expert, View
from VizDoom.VizDoom_src.scenario import BUILDER_VERSION, Scenario, ensure_scenario
from VizDoom.VizDoom_src.seeds import FIRST_DATA_SEED

PART = 20  # episodes; of 90 or 150 steps they fill whole chunks of a trajectory file
PART_SEEDS = 1000  # seeds that a part may use; it needs two per episode, and more for those dropped
EXPERT_STREAM = 2  # of the generators of a seed

EXPERT_VERSION = 1  # raise it when the same seed gives other actions: parts of another version are not gone on with

_RECIPE = "recipe"  # attribute of a part: what it was made from
_ATTEMPT = "attempt"  # info of a part: how many episodes were played for this one


@dataclass(frozen=True)
class Recipe:
    """What the content of a dataset depends on, the number of episodes aside."""

    scenario: Scenario
    steps: int  # of every episode
    view: View  # of the expert
    noise: float  # share of its actions that are random


@dataclass(frozen=True)
class Episode:
    """One episode of T steps."""

    seed: int
    is_red: bool
    observations: np.ndarray  # (T, 3, 64, 112) uint8
    actions: np.ndarray  # (T,) uint8
    rewards: np.ndarray  # (T,) float32
    health: np.ndarray  # (T,) uint8, at the time of each observation
    terminated: bool


def generate(recipe: Recipe, episodes: int, path: Path, *, overwrite: bool = False, workers: int | None = None) -> Path:
    """Make a file of trajectories. Its content is the same for any number of workers.

    Args:
        recipe: what is played.
        episodes: how many; half of them, rounded up, are red.
        path: the file; it appears when it is complete.
        overwrite: replace a file that exists.
        workers: processes that play; None: one per core this process may use.

    Raises:
        UserError: the file exists and is not to be replaced, cannot be written, the package vizdoom is missing, an
            engine died twice in an episode, or too few episodes reach the full length.
    """
    from RATE_model.evaluation import progress_bar  # late, as torch comes with it: the processes that play do without

    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists; add --overwrite true to replace it.")
    vizdoom()  # a missing package shows here, not in a process
    ensure_scenario(recipe.scenario)
    check_writable(path)
    folder = path.with_name(f"{path.name}.parts")
    sizes = [min(PART, episodes - first) for first in range(0, episodes, PART)]
    missing = [(part, size) for part, size in enumerate(sizes) if not _is_done(folder, part, size, recipe)]
    done = len(sizes) - len(missing)
    if done:
        print(f"going on with {done} of {len(sizes)} parts found in '{folder}'", flush=True)
    made = in_processes(functools.partial(make_part, recipe, folder), missing, workers or available_cores())
    with contextlib.closing(made), progress_bar(total=episodes, desc="playing", unit="episode") as bar:
        bar.update(episodes - sum(size for _, size in missing))
        try:
            for size in made:
                bar.update(size)
        except KeyboardInterrupt:
            print(f"What is done is kept in '{folder}'; the same command goes on from there.", flush=True)
            raise
    _join([_part_path(folder, part) for part in range(len(sizes))], recipe, path)
    shutil.rmtree(folder)
    return path


def make_part(recipe: Recipe, folder: Path, task: tuple[int, int]) -> int:
    """Make the file of one part, given as (its number, its episodes); returns the latter.

    Raises:
        UserError: too few episodes reach the full length, an engine died twice, or the file cannot be written.
    """
    part, size = task
    seeds = iter(range(FIRST_DATA_SEED + part * PART_SEEDS, FIRST_DATA_SEED + (part + 1) * PART_SEEDS))
    game = VizDoomTwoColorsEnv(recipe.scenario, max_steps=recipe.steps, privileged=True)
    attributes = {_RECIPE: _described(recipe)}
    with (
        contextlib.closing(game),
        _writer(_part_path(folder, part), attributes) as writer,
    ):
        for number in range(size):
            red = (part * PART + number) % 2 == 0
            tried = enumerate(_played(game, recipe, seeds, red), start=1)
            full = ((episode, attempt) for attempt, episode in tried if len(episode.actions) == recipe.steps)
            episode, attempt = next(full, (None, 0))
            if episode is None:
                raise UserError(
                    f"in {PART_SEEDS} seeds {number} of {size} episodes reached {recipe.steps} steps: in the others "
                    "the player died before. Lower --steps or --noise."
                )
            _add(writer, episode, attempt)
    return size


def _played(game: VizDoomTwoColorsEnv, recipe: Recipe, seeds: Iterator[int], red: bool) -> Iterator[Episode]:
    """Episodes of the next seeds of a colour."""
    for seed in seeds:
        observation, info = game.reset(seed=seed)
        if info["is_red"] == red:
            yield play(game, observation, info, recipe, seed)


def play(
    game: VizDoomTwoColorsEnv, observation: np.ndarray, info: dict[str, Any], recipe: Recipe, seed: int
) -> Episode:
    """The expert's episode in a game that was reset to a seed and gave this observation and info."""
    expert = Expert(np.random.default_rng([seed, EXPERT_STREAM]), view=recipe.view, noise=recipe.noise)
    is_red, terminated, truncated = info["is_red"], False, False
    steps = []
    while not (terminated or truncated):
        action, health, seen = expert.act(game.surroundings()), info["health"], observation
        observation, reward, terminated, truncated, info = game.step(action)
        steps.append((seen, action, reward, health))
    observations, actions, rewards, healths = zip(*steps, strict=True)
    return Episode(
        seed,
        is_red,
        np.stack(observations),
        np.array(actions, dtype=np.uint8),
        np.array(rewards, dtype=np.float32),
        np.array(healths, dtype=np.uint8),
        terminated,
    )


def _add(writer: TrajectoryWriter, episode: Episode, attempt: int) -> None:
    """Append an episode to a part; ``attempt`` is how many were played for it."""
    steps = len(episode.actions)
    infos = {
        "is_red": np.full(steps, episode.is_red, dtype=np.uint8),
        "seed": np.full(steps, episode.seed, dtype=np.int64),
        "health": episode.health,
        _ATTEMPT: np.full(steps, attempt, dtype=np.int32),
    }
    writer.add_episode(episode.observations, episode.actions, episode.rewards, terminal=episode.terminated, infos=infos)


def _writer(path: Path, attributes: dict[str, Any]) -> TrajectoryWriter:
    return TrajectoryWriter(path, observation_shape=OBSERVATION_SHAPE, observation_dtype="uint8", attributes=attributes)


def _described(recipe: Recipe) -> dict[str, Any]:
    """A recipe and whatever else decides what comes of it."""
    return {**asdict(recipe), "builder": BUILDER_VERSION, "expert": EXPERT_VERSION, "vizdoom": vizdoom().__version__}


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part_{part:05d}.h5"


def _is_done(folder: Path, part: int, size: int, recipe: Recipe) -> bool:
    """Whether a part is there, whole and of this recipe."""
    with contextlib.suppress(UserError), TrajectoryFile(_part_path(folder, part)) as file:
        return file.attributes.get(_RECIPE) == _described(recipe) and file.num_episodes == size
    return False


@contextlib.contextmanager
def _opened(part: Path) -> Iterator[h5py.File]:
    """The file of a part, checked, with what its compression needs."""
    with TrajectoryFile(part), h5py.File(part) as file:
        yield file


def _join(parts: list[Path], recipe: Recipe, path: Path) -> None:
    """Write the episodes of all parts, in order, into one file."""
    from RATE_model.evaluation import progress_bar

    attempts, last_seed = 0, FIRST_DATA_SEED
    for part in parts:
        with _opened(part) as file:
            attempts += int(file[f"infos/{_ATTEMPT}"][:: recipe.steps].sum())
            last_seed = int(file["infos/seed"][-1])
    described = _described(recipe)
    attributes = {
        "environment": ENV_ID,
        "generator": f"scripted expert with a {recipe.view} view",
        **described.pop("scenario"),
        **described,
        "first_seed": FIRST_DATA_SEED,
        "last_seed": last_seed,
        "played": attempts,
    }
    with _writer(path, attributes) as writer, progress_bar(total=len(parts), desc="joining", unit="part") as bar:
        for part in parts:
            with _opened(part) as file:
                for start in range(0, len(file["rewards"]), recipe.steps):
                    chosen = slice(start, start + recipe.steps)
                    writer.add_episode(
                        *(file[name][chosen] for name in ("observations", "actions", "rewards")),
                        terminal=bool(file["terminals"][chosen][-1]),
                        infos={name: file[f"infos/{name}"][chosen] for name in ("is_red", "seed", "health")},
                    )
            bar.update()
