"""T-Maze trajectories: making the files and loading them as windows.

    python3 TMaze_new/TMaze_new_src/dataset.py --max_n_final 3

One file per number of segments S holds episodes of the optimal policy, half of them up and half down. With
``--corridors full``, the published setting, every corridor has length S * K - 2 (K is ``context_length``): S * K - 1
steps, which with one step of padding fill S segments of K steps. With ``--corridors any`` lengths are drawn evenly from
those that need S segments, so that the junction may come at any step of a segment. Every episode has a seed of its own,
from S * 1,000,000 upward: no episode and no noise is shared with another file or with an evaluation (seeds below
10,000).
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from RATE_model.cli.limits import MAX_EPISODE_STEPS, MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error, parse_options
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.selection import split_episodes, whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.locks import ensure, making
from TMaze_new.TMaze_new_src.env import (
    ENV_ID,
    NUM_ACTIONS,
    OBSERVATION_SIZE,
    TMazeVectorEnv,
    expert_actions,
    goals_of_seeds,
)
from TMaze_new.TMaze_new_src.published import converted, published_file
from TMaze_new.TMaze_new_src.task_choice import TaskChoice
from TMaze_new.TMaze_new_src.tasks import environment_id

DATA_DIRECTORY = Path(__file__).resolve().parents[1] / "TMaze_new_data"
FIRST_SEED = 1_000_000  # of S = 1; S = 2 starts at twice this number, and so on
MAX_TRAJECTORIES = 900_000  # this many seeds, as many up as down, lie within the million of one file
TRAINING_FRACTION = 0.8
SPLIT_SEED = 0
CORRIDOR_SEED = 0
SCRIPT = "python3 TMaze_new/TMaze_new_src/dataset.py"


@dataclass(frozen=True)
class DataOptions(TaskChoice):
    """What is to be remembered, and which trajectories to make or to train on."""

    # Segments of the shortest episodes.
    min_n_final: int = 1
    # Segments of the longest episodes.
    max_n_final: int = 3
    # Steps per segment (K).
    context_length: int = 30
    # Episodes per number of segments.
    trajectories: int = 2000
    # Observations that show the hint, counted from the first.
    hint_steps: int = 1
    # full: the junction comes at the end of the last segment (published); any: at any step of the last segment.
    corridors: Literal["full", "any"] = "full"
    # Only successful episodes; false: the second half of them takes the wrong turn and gets reward 0.
    win_only: Boolean = True
    # Folder of the authors' pickles to train on instead; each is converted once. What these flags say of episodes then
    # does nothing, but for the numbers of segments and --context_length
    data_path: Path | None = changeable(None)
    # Directory of the data files; none = TMaze_new/TMaze_new_data.
    data_dir: Path | None = changeable(None)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        at_least(1, min_n_final=self.min_n_final, hint_steps=self.hint_steps)
        at_least(3, context_length=self.context_length, trajectories=self.trajectories)
        at_most(MAX_STEPS, max_n_final=self.max_n_final, context_length=self.context_length)
        at_most(MAX_TRAJECTORIES, trajectories=self.trajectories)
        at_most(MAX_EPISODE_STEPS, hint_steps=self.hint_steps)
        if self.max_n_final < self.min_n_final:
            raise UserError(
                f"--max_n_final {self.max_n_final}: must be at least --min_n_final, which is {self.min_n_final}"
            )
        if self.is_chain:
            if self.hint_steps > 1 or self.data_path is not None:
                flag = "data_path" if self.data_path is not None else "hint_steps"
                raise UserError(f"--{flag}: goes with --task passive; leave it out")
            shortest = self.min_n_final * self.context_length
            if shortest < self.shortest:
                raise UserError(
                    f"--min_n_final {self.min_n_final}: --task {self.task} takes at least {self.shortest} steps; these "
                    f"segments of --context_length {self.context_length} have {shortest}: give more, or longer ones"
                )

    @property
    def segment_counts(self) -> range:
        """All numbers of segments from shortest to longest."""
        return range(self.min_n_final, self.max_n_final + 1)


def dataset_path(options: DataOptions, segments: int) -> Path:
    """The file of episodes of this many segments; its name holds all that its content depends on."""
    kind = "win" if options.win_only else "half"
    corridors = "" if options.corridors == "full" else f"_{options.corridors}"
    size = f"S{segments}_K{options.context_length}{corridors}"
    hint = f"_hint{options.hint_steps}" if not options.is_chain else ""
    name = "_".join(map(str, ("tmaze", *options.name_parts, f"{size}{hint}_n{options.trajectories}_{kind}.h5")))
    return (options.data_dir or DATA_DIRECTORY) / name


def generate(options: DataOptions, segments: int, *, overwrite: bool = False) -> Path:
    """Make the file of episodes of this many segments, and return its path.

    Raises:
        UserError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    path = dataset_path(options, segments)
    with making(path, overwrite=overwrite) as wanted:
        if wanted:
            _make(options, segments, path)
    return path


def _make(options: DataOptions, segments: int, path: Path) -> None:
    """See `generate`."""
    if options.is_chain:
        _make_chains(options, segments, path)
        return
    seeds = balanced_seeds(segments * FIRST_SEED, options.trajectories)
    wins = options.trajectories if options.win_only else options.trajectories // 2
    corridor_lengths = _corridor_lengths(options, segments)
    observations, actions, rewards, terminals = _play(
        seeds, np.arange(len(seeds)) < wins, corridor_lengths, options.hint_steps
    )
    attributes = {
        "environment": ENV_ID,
        "generator": "expert, then the wrong turn in the second half" if not options.win_only else "expert",
        "corridor_lengths": f"{corridor_lengths.min()} to {corridor_lengths.max()}",
        "segments": segments,
        "context_length": options.context_length,
        "hint_steps": options.hint_steps,
        "first_seed": int(seeds.min()),
        "last_seed": int(seeds.max()),
    }
    with TrajectoryWriter(
        path, observation_shape=(OBSERVATION_SIZE,), observation_dtype="float32", attributes=attributes
    ) as writer:
        infos = {"seed": np.repeat(seeds[:, None], actions.shape[1], axis=1)}
        writer.add_episodes(observations, actions, rewards, corridor_lengths + 1, terminals, infos)


def _make_chains(options: DataOptions, segments: int, path: Path) -> None:
    """The file of a task of `tasks.py`."""
    count = options.trajectories
    lengths = _drawn(options, segments, longest=segments * options.context_length, shortest=options.shortest)
    seeds = segments * FIRST_SEED + np.arange(count)
    chains = options.chains(lengths)
    chains.reset(seed=seeds, options={"flip": np.arange(count) % 2 == 1})
    wrong = np.arange(count) >= (count if options.win_only else count // 2)
    observations, actions, rewards, terminals = chains.play_expert(wrong)
    attributes = {
        "environment": environment_id(options.task),
        "generator": "expert" if options.win_only else "expert, then every turn wrong in the second half",
        "corridor_lengths": f"{chains.corridor_length.min()} to {chains.corridor_length.max()}",
        "junctions": chains.junctions,
        "segments": segments,
        "context_length": options.context_length,
        "first_seed": int(seeds.min()),
        "last_seed": int(seeds.max()),
    }
    with TrajectoryWriter(
        path, observation_shape=(chains.features,), observation_dtype="float32", attributes=attributes
    ) as writer:
        infos = {"seed": np.repeat(seeds[:, None], actions.shape[1], axis=1)}
        writer.add_episodes(observations, actions, rewards, chains.steps_needed, terminals, infos)


def _corridor_lengths(options: DataOptions, segments: int) -> np.ndarray:
    """(E,) int64: of episodes that, padded by a step, need exactly this many segments."""
    return _drawn(options, segments, longest=segments * options.context_length - 2, shortest=1)


def _drawn(options: DataOptions, segments: int, *, longest: int, shortest: int) -> np.ndarray:
    """(E,) int64: all the longest with ``--corridors full``, else drawn from those of the last segment."""
    if options.corridors == "full":
        return np.full(options.trajectories, longest)
    shortest = max(shortest, longest - options.context_length + 1)
    # Pairs of an up and a down episode share a length: neither side can be told from it.
    pairs = np.random.default_rng([CORRIDOR_SEED, segments]).integers(
        shortest, longest, size=(options.trajectories + 1) // 2, endpoint=True
    )
    return np.repeat(pairs, 2)[: options.trajectories]


def balanced_seeds(first: int, count: int) -> np.ndarray:
    """The lowest seeds from ``first`` whose goals are up, down, up, down, ...: (count,) int64, all distinct."""
    candidates = first + np.arange(2 * count + 100)
    goals = goals_of_seeds(candidates)
    seeds = np.empty(count, dtype=np.int64)
    seeds[0::2] = candidates[goals == 1][: (count + 1) // 2]
    seeds[1::2] = candidates[goals == -1][: count // 2]
    return seeds


def _play(
    seeds: np.ndarray, win: np.ndarray, corridor_lengths: np.ndarray, hint_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Episodes of the expert, all at once; where ``win`` (E,) is False it believes the opposite of the hint.

    Returns:
        observations (E, T, 4) float32, actions (E, T) uint8, rewards (E, T) float32 with T = the longest corridor + 1,
        of which an episode uses the first corridor + 1 steps, and terminals (E,) bool, whether they ended with those.
    """
    steps = int(corridor_lengths.max()) + 1
    observations = np.empty((len(seeds), steps, OBSERVATION_SIZE), dtype=np.float32)
    actions = np.empty((len(seeds), steps), dtype=np.uint8)
    rewards = np.empty((len(seeds), steps), dtype=np.float32)
    mazes = TMazeVectorEnv(len(seeds), corridor_lengths, hint_steps=hint_steps)
    observation, _ = mazes.reset(seed=seeds)
    belief = np.where(win, observation[:, 1], -observation[:, 1])
    for step in range(steps):
        observations[:, step] = observation
        actions[:, step] = expert_actions(observation, belief)
        observation, rewards[:, step], terminated, _, _ = mazes.step(actions[:, step])
    return observations, actions, rewards, terminated


def ensure_datasets(options: DataOptions, segment_counts: Iterable[int] | None = None) -> list[Path]:
    """The files of these numbers of segments (by default from shortest to longest), making those that are missing.

    Of the authors' data where `data_path` names it. Raises UserError if that is missing or damaged.
    """
    paths = []
    for segments in options.segment_counts if segment_counts is None else segment_counts:
        if options.data_path is not None:
            source = published_file(options.data_path, segments, options.context_length)
            paths.append(converted(source, options.data_dir or DATA_DIRECTORY))
            continue
        paths.append(dataset_path(options, segments))
        ensure(paths[-1], partial(_make_and_say, options, segments))
    return paths


def _make_and_say(options: DataOptions, segments: int) -> None:
    path = dataset_path(options, segments)
    print(f"Making {options.trajectories} T-Maze episodes of {segments} segments: {path}", flush=True)
    generate(options, segments)


def open_dataset(path: Path, features: int = OBSERVATION_SIZE) -> TrajectoryFile:
    """A T-Maze trajectory file of this many numbers an observation, checked. Raises UserError; see `TrajectoryFile`."""
    return TrajectoryFile(
        path,
        observation_shape=(features,),
        observation_dtype="float32",
        num_actions=NUM_ACTIONS,
        hint="Delete it; the next training makes it again." if path.exists() else "The next training makes it.",
    )


def load_windows(
    paths: Sequence[Path],
    *,
    size: int,
    features: int = OBSERVATION_SIZE,
    fraction: float = TRAINING_FRACTION,
    split_seed: int = SPLIT_SEED,
) -> tuple[WindowDataset, WindowDataset]:
    """All episodes of these files, padded to ``size`` steps: a training and a validation dataset.

    A stage of s segments uses the files of min_n_final to s segments, in this order, and ``size = K * s``. An episode
    is on the same side in every stage and every run: the split depends on ``split_seed`` only.

    Raises:
        UserError: a file is missing or bad, or its episodes are longer than ``size``.
    """
    files = [open_dataset(path, features) for path in paths]
    windows = np.concatenate([whole_episodes(index, file, max_steps=size) for index, file in enumerate(files)])
    training, validation = split_episodes(windows, files, fraction=fraction, seed=split_seed)
    dataset = WindowDataset(files, training, size=size)
    return dataset, dataset.with_windows(validation)


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    data: DataOptions = field(default_factory=DataOptions)
    # Replace files that exist.
    overwrite: Boolean = False


def describe(path: Path, features: int = OBSERVATION_SIZE) -> None:
    """Print a line on what a file holds."""
    with open_dataset(path, features) as file:
        steps = " to ".join(map(str, sorted({int(file.lengths.min()), int(file.lengths.max())})))
        print(
            f"{path}: {file.num_episodes} episodes of {steps} steps, "
            f"mean return {file.attributes['return_mean']:.2f}, {path.stat().st_size / 1e6:.1f} MB"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Make the files that the flags ask for; see the module."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog=SCRIPT, description="Make T-Maze trajectories.", aliases={"output_dir": "data_dir"}
        )
        if options.data.data_path is not None:
            for path in ensure_datasets(options.data):
                describe(path)
            return
        paths = [dataset_path(options.data, segments) for segments in options.data.segment_counts]
        if all(path.exists() for path in paths) and not options.overwrite:
            files = f"all {len(paths)} files exist, '{paths[0]}' first" if len(paths) > 1 else f"'{paths[0]}' exists"
            raise UserError(f"{files}; add --overwrite true to replace {'them' if len(paths) > 1 else 'it'}.")
        for segments, path in zip(options.data.segment_counts, paths, strict=True):
            if options.overwrite:
                generate(options.data, segments, overwrite=True)
            elif not ensure(path, partial(generate, options.data, segments)):
                print(f"{path} is there already and is kept")  # of an interrupted start, or of fewer segments
            describe(path, options.data.spec.observation_shape[0])


if __name__ == "__main__":
    main()
