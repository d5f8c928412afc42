"""Memory Maze trajectories: making or converting them, and loading them as windows.

    python3 MemoryMaze/MemoryMaze_src/dataset.py --episodes 200
    python3 MemoryMaze/MemoryMaze_src/dataset.py --episodes 50 --size 11 --workers 8
    python3 MemoryMaze/MemoryMaze_src/dataset.py --data_path my_dreamer_episodes

A file is made by the experts, or converted from a folder of DreamerV3-style episodes. It goes to
MemoryMaze/MemoryMaze_data, where training finds it by the same flags; with --output it goes elsewhere, and training
takes it as --data_path. When a run is interrupted, the same command goes on where it was.

In our files actions[t] was taken on observations[t], and rewards[t] followed it. Dreamer's episodes have the action
that *led* to an image in its row, below a first row without one, so our actions[t] is their action[t + 1], and our
rewards[t] their reward[t + 1]. See --alignment for episodes of other makers.

A training takes windows, pieces of an episode of --segments times --context_length steps; a file holds whole episodes,
whichever windows are taken. Returns-to-go are those of the whole episode.

    --windows all         every piece of every episode; each epoch draws from all of them
    --windows published   pieces side by side, that begin below step 500 - length (0, 90, ..., 360), with two rewards or
                          more
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from MemoryMaze.MemoryMaze_src.env import NUM_ACTIONS, OBSERVATION_SHAPE, check_size
from MemoryMaze.MemoryMaze_src.generate import DEFAULT_MIX, EXPERTS_VERSION, Recipe, generate
from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.local_settings import configured_folder
from RATE_model.cli.options import changeable, exit_on_user_error, parse_options
from RATE_model.cli.spellings import existing_file
from RATE_model.data.npz import NpzKeys, Rows, conversion_path, given_data, require_expert_labels
from RATE_model.data.parts import FileOptions
from RATE_model.data.trajectories import Learn, TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.system.locks import ensure

if TYPE_CHECKING:
    from RATE_model.data.dataset import WindowDataset

DATA_DIRECTORY = Path(__file__).resolve().parents[1] / "MemoryMaze_data"
MAX_EPISODES = 100_000
TRAINING_FRACTION = 0.9
SPLIT_SEED = 0
# The published windows: where they may begin, and what they must hold.
PUBLISHED_STEPS = 500
PUBLISHED_REWARD = 2
SETTING = "memory_maze: data: of wandb_config.yaml"

Alignment = Literal["auto", "last", "causal", "replay"]
Windows = Literal["all", "published"]
_ROWS: dict[Alignment, Rows] = {"auto": "auto", "last": "arrivals", "causal": "steps", "replay": "replay"}


@dataclass(frozen=True)
class DataOptions:
    """Which trajectories to make or to train on."""

    # Edge of the maze, in a training also of those it is evaluated in: 9, 11, 13 or 15 cells
    size: int = 9
    # Episodes; the published data had 5000
    episodes: int = 200
    # Steps of every episode
    steps: int = 1000
    # Who plays, as EXPERT:NOISE:SHARE; NOISE is the probability of a random action, SHARE of the episodes
    mix: tuple[str, ...] = DEFAULT_MIX
    # Share of the time in which the players are led to a ball drawn at random, maybe the one that is asked for: expert
    # data with perturbations (DART)
    perturbation: float = 0.0
    # What a training learns at every step: the action that was taken, or the one that the player would have taken there
    # if it did not err; files hold both
    learn: Learn = "recorded"
    # Which pieces of the episodes a training takes: all, or those that the published code kept; files hold all
    windows: Windows = "all"
    # Data to read instead: an .h5 file made here (training), or a folder of DreamerV3-style *.npz; --episodes, --steps,
    # --mix and --perturbation then do nothing, and --size chooses only the mazes of evaluations. none = in a training
    # what `memory_maze: data:` of wandb_config.yaml names, if it is set
    data_path: Path | None = changeable(None)
    # Such a folder's actions: last = the one that led to the image beside it (Dreamer's episodes); causal = the one
    # taken on it, with the reward that followed; replay = the one taken on it, with the reward that came with the image
    # (DreamerV3's replay chunks); auto = last if the first is none (all zeros), causal if there is an image more than
    # actions, else an error
    alignment: Alignment = "auto"
    # Directory of files that are made; none = MemoryMaze/MemoryMaze_data
    data_dir: Path | None = changeable(None)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        check_size(self.size)
        at_least(10, episodes=self.episodes)
        at_most(MAX_EPISODES, episodes=self.episodes)
        at_least(1, steps=self.steps)
        at_most(MAX_STEPS, steps=self.steps)
        self.recipe()

    def recipe(self) -> Recipe:
        """What is played."""
        return Recipe(self.size, self.steps, self.mix, self.perturbation)


def dataset_path(options: DataOptions) -> Path:
    """The file of what these options make; its name holds all that its content depends on."""
    mix = "_".join(word.replace(":", "-") for word in options.mix)
    parts = [f"memory_maze_{options.size}x{options.size}", mix]
    if options.steps != DataOptions.steps:
        parts.append(f"steps{options.steps}")
    if options.perturbation:
        parts.append(f"perturbation{options.perturbation:g}")
    return existing_file((options.data_dir or DATA_DIRECTORY) / f"{'_'.join(parts)}_n{options.episodes}.h5")


def given_source(options: DataOptions) -> tuple[Path, str] | None:
    """The data that is named, and by what: --data_path, else wandb_config.yaml; None: nothing is."""
    if options.data_path is not None:
        return options.data_path, "--data_path"
    place = configured_folder("memory_maze", "data")
    return None if place is None else (place, SETTING)


def ensure_dataset(options: DataOptions) -> list[Path]:
    """The files to train on, making or converting what is missing.

    Raises:
        UserError: the data that was named is missing or unusable, what was made before is of other experts, or nothing
            could be made or written.
    """
    if (given := given_source(options)) is not None:
        path = given_dataset(options, *given)
        print(f"Data: {path} ({given[1]})", flush=True)
        return [path]
    path = dataset_path(options)

    def make() -> None:
        print(f"Making {options.episodes} Memory Maze episodes: {path}", flush=True)
        generate(options.recipe(), options.episodes, path)

    if not ensure(path, make):
        check_experts(path)
        print(f"Data: {path}", flush=True)
    return [path]


def check_windows(options: DataOptions, size: int) -> None:
    """Raise a UserError if there can be no window of this many steps, as far as that is seen without the data.

    Or none that tells what is to be learned.
    """
    source, named = given_source(options) or (None, "")
    require_expert_labels(source, options.learn, named=named)
    length = f"{size} steps (--segments times --context_length)"
    if options.windows == "published" and size >= PUBLISHED_STEPS:
        raise UserError(
            f"--windows published: its windows end before step {PUBLISHED_STEPS}, and {length} are asked for. Take "
            "fewer, or --windows all."
        )
    if options.steps < size and source is None:
        raise UserError(f"--steps {options.steps}: an episode must have at least the {length} of a window")


def check_experts(path: Path) -> None:
    """Raise a UserError if a file was made by other experts than those that would make it now."""
    with open_dataset(path) as file:
        version = file.attributes.get("experts", "unknown")
    if version != EXPERTS_VERSION:
        raise UserError(
            f"'{path}' was made by experts of version {version}, and they are at version {EXPERTS_VERSION}. Give "
            "another --data_dir, where it is made again; or train on it as it is: name it with --data_path."
        )


def given_dataset(
    options: DataOptions, source: Path, named: str, target: Path | None = None, *, overwrite: bool = False
) -> Path:
    """The file ``source``, or the conversion of the folder ``source``, into ``target``; ``named`` by this flag.

    With ``overwrite`` a folder is converted again, and whatever ``target`` is is replaced.
    """
    try:
        return given_data(
            source,
            target or conversion_path(source, options.data_dir or DATA_DIRECTORY, "memory_maze"),
            pattern="*.npz",
            named=named,
            keys=NpzKeys(
                observations=("image", "obs", "image_t"),
                time_last=("image_t",),
                marked=False,
                continued=True,
                rows=_ROWS[options.alignment],
                one_hot=True,
                channels_last=True,
            ),
            observation_shape=OBSERVATION_SHAPE,
            num_actions=NUM_ACTIONS,
            overwrite=overwrite,
            attributes={"environment": "MemoryMaze", "generator": "imported", "alignment": options.alignment},
        )
    except UserError as error:
        if options.alignment == "auto" and "does not tell whether an action" in str(error):
            raise UserError(f"{error} Say it with --alignment last, causal or replay.") from None
        if "rewards came with the images" in str(error):
            raise UserError(f"{error} Say it with --alignment replay.") from None
        raise


def open_dataset(path: Path) -> TrajectoryFile:
    """A Memory Maze trajectory file, checked. Raises UserError; see `TrajectoryFile`."""
    return TrajectoryFile(
        path,
        observation_shape=OBSERVATION_SHAPE,
        observation_dtype="uint8",
        num_actions=NUM_ACTIONS,
        hint="Delete it, or name another --data_path; a training without --data_path makes what it needs.",
    )


def load_windows(
    paths: Sequence[Path],
    *,
    size: int,
    windows: Windows = "all",
    learn: Learn = "recorded",
    fraction: float = TRAINING_FRACTION,
    split_seed: int = SPLIT_SEED,
) -> tuple[WindowDataset, WindowDataset]:
    """Windows of ``size`` steps: a training and a validation dataset, of different episodes.

    Validation takes windows side by side from the whole of its episodes, whichever are trained on. An episode is on the
    same side in every run: the split depends on ``split_seed`` only.

    Raises:
        UserError: a file is missing or bad, no episode is so long, no window is left, there are too few episodes,
            or a file does not tell what is to be learned.
    """
    # Late, as torch comes with it: --help and the processes that play do without.
    from RATE_model.data.dataset import WindowDataset
    from RATE_model.data.selection import split_episodes, strided_windows

    files = [open_dataset(path) for path in paths]
    stride = size if windows == "published" else 1
    taken, beside = (
        np.concatenate([strided_windows(index, file, size, step) for index, file in enumerate(files)])
        for step in (stride, size)
    )
    if windows == "published":
        of_file = (taken[taken[:, 0] == index] for index in range(len(files)))
        taken = np.concatenate([rows[published(file, rows)] for file, rows in zip(files, of_file, strict=True)])
        if not len(taken):
            raise UserError(
                f"--windows published leaves nothing to train on: no window of {size} steps (--segments times "
                f"--context_length) that begins below step {PUBLISHED_STEPS - size} has {PUBLISHED_REWARD} rewards. "
                "Take --windows all, or data of better players."
            )
    training, _ = split_episodes(taken, files, fraction=fraction, seed=split_seed)
    _, validation = split_episodes(beside, files, fraction=fraction, seed=split_seed)
    dataset = WindowDataset(files, training, size=size, learn=learn)
    return dataset, dataset.with_windows(validation)


def published(file: TrajectoryFile, windows: np.ndarray) -> np.ndarray:
    """Which windows (W, 3) of this file the published loader keeps: (W,) bool."""
    starts, size = windows[:, 1], windows[:, 2]
    within = starts - file.starts[np.searchsorted(file.starts, starts, side="right") - 1]
    before = np.concatenate([[0.0], np.cumsum(file.rewards, dtype=np.float64)])
    return (within < PUBLISHED_STEPS - size) & (before[starts + size] - before[starts] >= PUBLISHED_REWARD)


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    data: DataOptions = field(default_factory=DataOptions)
    file: FileOptions = field(default_factory=FileOptions)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.data.data_path is not None and not self.data.data_path.is_dir():
            raise UserError(f"--data_path '{self.data.data_path}': must be a folder of *.npz to convert")


def describe(path: Path) -> str:
    """One line on what a file holds."""
    with open_dataset(path) as file:
        lengths = file.lengths
        returns = file.returns_to_go()[file.starts]
    return (
        f"{path}: {len(lengths)} episodes of {lengths.min()} to {lengths.max()} steps, mean return "
        f"{returns.mean():.2f} ({returns.min():g} to {returns.max():g}), {path.stat().st_size / 1e6:.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Make or convert what the flags (None: of the command line) ask for; see the module."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python3 MemoryMaze/MemoryMaze_src/dataset.py",
            description="Make Memory Maze trajectories with the experts, or convert DreamerV3-style episodes.",
        )
        if options.data.data_path is not None:
            source, file = options.data.data_path, options.file
            path = given_dataset(options.data, source, "--data_path", file.output, overwrite=file.overwrite)
        else:
            path = options.file.output or dataset_path(options.data)
            recipe, episodes = options.data.recipe(), options.data.episodes
            generate(recipe, episodes, path, overwrite=options.file.overwrite, workers=options.file.workers)
        print(describe(path))


if __name__ == "__main__":
    main()
