"""T-Maze trajectories: make the files and load them as windows.

    python3 TMaze_new/TMaze_new_src/dataset.py --max_n_final 3

One file per number of segments S holds episodes of the optimal policy, half up and half down. With ``--corridors
full``, the published setting, every corridor has length S * K - 2 (K is ``context_length``): S * K - 1 steps, which
with one step of padding fill S segments of K steps. ``--corridors any`` draws lengths uniformly from those
that need S segments, so the junction may be at any step of a segment. Every episode has its own seed, from S *
1,000,000 upward: no episode and no noise is shared with another file or with an evaluation (seeds below 10,000).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from RATE_model.cli.limits import MAX_STEPS, Count, EpisodeSteps, Range
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.maker import DataMaker, split_datasets
from RATE_model.data.selection import whole_episodes
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.locks import ensure, making
from TMaze_new.TMaze_new_src.env import ENV_ID, OBSERVATION_SIZE, SPEC, TMazeVectorEnv, expert_actions, goals_of_seeds
from TMaze_new.TMaze_new_src.published import converted, published_file
from TMaze_new.TMaze_new_src.task_choice import TaskChoice
from TMaze_new.TMaze_new_src.tasks import environment_id

FIRST_SEED = 1_000_000  # of S = 1; S = 2 starts at twice this number, and so on
MAX_TRAJECTORIES = 900_000  # that many seeds, half up and half down, fit into the million of one file
TRAINING_FRACTION = 0.8
CORRIDOR_SEED = 0


@dataclass(frozen=True)
class DataOptions(TaskChoice):
    """What to remember, and which trajectories to make or to train on."""

    # Segments of the shortest episodes
    min_n_final: Count = 1
    # Segments of the longest episodes
    max_n_final: Annotated[int, Range(most=MAX_STEPS)] = 3
    # Steps per segment (K)
    context_length: Annotated[int, Range(3, MAX_STEPS)] = 30
    # Episodes per number of segments
    trajectories: Annotated[int, Range(3, MAX_TRAJECTORIES)] = 2000
    # Observations that show the hint, counted from the first
    hint_steps: EpisodeSteps = 1
    # full: the junction is at the end of the last segment (published); any: at any step of the last segment
    corridors: Literal["full", "any"] = "full"
    # Only successful episodes; false: the second half takes the wrong turn and gets reward 0
    win_only: Boolean = True
    # Folder of the authors' pickles to train on instead; each is converted once. The flags about episodes then have no
    # effect, except for the numbers of segments and --context_length
    data_path: Path | None = changeable(None)
    # Folder for data files; none = TMaze_new/TMaze_new_data
    data_dir: Path | None = changeable(None)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        if self.max_n_final < self.min_n_final:
            raise UserError(
                f"--max_n_final {self.max_n_final}: must be at least --min_n_final, which is {self.min_n_final}"
            )
        if self.is_chain:
            if self.hint_steps > 1 or self.data_path is not None:
                flag = "data_path" if self.data_path is not None else "hint_steps"
                raise UserError(f"--{flag}: only applies to --task passive; leave it out")
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

    def only(self, segments: int) -> "DataOptions":
        """The options of a single file, for episodes of this many segments."""
        return replace(self, min_n_final=segments, max_n_final=segments)


class TMazeData(DataMaker[DataOptions]):
    """The expert's episodes or the authors' pickles; the options are those of one file (see `only`)."""

    name = "T-Maze"
    environment = ENV_ID
    script = "TMaze_new/TMaze_new_src/dataset.py"
    directory = Path(__file__).resolve().parents[1] / "TMaze_new_data"
    prefix = "tmaze"
    options = DataOptions
    spec = SPEC

    def file_name(self, options: DataOptions) -> str:
        """A name made from the task and the lengths."""
        kind = "win" if options.win_only else "half"
        corridors = "" if options.corridors == "full" else f"_{options.corridors}"
        size = f"S{options.max_n_final}_K{options.context_length}{corridors}"
        hint = f"_hint{options.hint_steps}" if not options.is_chain else ""
        return "_".join(map(str, ("tmaze", *options.name_parts, f"{size}{hint}_n{options.trajectories}_{kind}.h5")))

    def count(self, options: DataOptions) -> int:
        """The number of episodes in a file."""
        return options.trajectories

    def make(self, options: DataOptions, path: Path, *, overwrite: bool = False, workers: int | None = None) -> None:
        """Play all episodes at once, in this process."""
        with making(path, overwrite=overwrite) as wanted:
            if wanted:
                play = _play_chains if options.is_chain else _play_passive
                attributes, observations, seeds, episodes = play(options, options.max_n_final)
                described = {
                    "segments": options.max_n_final,
                    "context_length": options.context_length,
                    **({} if options.is_chain else {"hint_steps": options.hint_steps}),
                    "first_seed": int(seeds.min()),
                    "last_seed": int(seeds.max()),
                }
                with TrajectoryWriter(
                    path,
                    observation_shape=observations.shape[2:],
                    observation_dtype="float32",
                    attributes=attributes | described,
                ) as writer:
                    infos = {"seed": np.repeat(seeds[:, None], observations.shape[1], axis=1)}
                    if not options.is_chain:  # +1 or -1 at every step, for objectives and probes
                        infos["hint"] = np.repeat(observations[:, :1, 1].astype(np.int8), observations.shape[1], axis=1)
                    writer.add_episodes(observations, *episodes, infos=infos)

    def given(self, options: DataOptions, target: Path | None = None, *, overwrite: bool = False) -> Path:
        """The converted pickle."""
        assert options.data_path is not None, "asked for where there is one"
        source = published_file(options.data_path, options.max_n_final, options.context_length)
        return converted(source, options.data_dir or self.directory)


DATA = TMazeData()
# Attributes, observations (E, T, n), seeds (E,), and actions (E, T), rewards (E, T), lengths (E,), terminals (E,).
Played = tuple[dict[str, Any], np.ndarray, np.ndarray, tuple[np.ndarray, ...]]


def _play_passive(options: DataOptions, segments: int) -> Played:
    """Episodes of the expert, all at once; losers act on the opposite of the hint.

    T is the longest corridor + 1; an episode uses the first steps, its own corridor + 1.
    """
    seeds = balanced_seeds(segments * FIRST_SEED, options.trajectories)
    wins = options.trajectories if options.win_only else options.trajectories // 2
    # With one step of padding, they need exactly this many segments.
    corridors = _drawn(options, segments, longest=segments * options.context_length - 2, shortest=1)
    shape = len(seeds), int(corridors.max()) + 1
    observations = np.empty((*shape, OBSERVATION_SIZE), dtype=np.float32)
    actions, rewards = np.empty(shape, dtype=np.uint8), np.empty(shape, dtype=np.float32)
    mazes = TMazeVectorEnv(len(seeds), corridors, hint_steps=options.hint_steps)
    observation, _ = mazes.reset(seed=seeds)
    belief = np.where(np.arange(len(seeds)) < wins, observation[:, 1], -observation[:, 1])
    for step in range(shape[1]):
        observations[:, step] = observation
        actions[:, step] = expert_actions(observation, belief)
        observation, rewards[:, step], terminals, _, _ = mazes.step(actions[:, step])
    attributes = {
        "environment": ENV_ID,
        "generator": "expert, then the wrong turn in the second half" if not options.win_only else "expert",
        "corridor_lengths": f"{corridors.min()} to {corridors.max()}",
    }
    return attributes, observations, seeds, (actions, rewards, corridors + 1, terminals)


def _play_chains(options: DataOptions, segments: int) -> Played:
    """Episodes of a task of `tasks.py`."""
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
    }
    return attributes, observations, seeds, (actions, rewards, chains.steps_needed, terminals)


def _drawn(options: DataOptions, segments: int, *, longest: int, shortest: int) -> np.ndarray:
    """(E,) int64: the longest with ``--corridors full``, else drawn from those that end in the last segment."""
    if options.corridors == "full":
        return np.full(options.trajectories, longest)
    shortest = max(shortest, longest - options.context_length + 1)
    # Pairs of an up and a down episode share a length, so the length does not reveal the side.
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


def ensure_datasets(options: DataOptions) -> list[Path]:
    """The files of all numbers of segments, from shortest to longest; missing ones are made.

    With `data_path`, those of the authors' data. Raises UserError if it is missing or damaged.
    """
    return [DATA.ensure(options.only(segments)) for segments in options.segment_counts]


def load_windows(
    paths: Sequence[Path], *, size: int, spec: EnvironmentSpec = SPEC, fraction: float = TRAINING_FRACTION
) -> tuple[WindowDataset, WindowDataset]:
    """Training and validation datasets of all episodes in these files, padded to ``size`` steps.

    A stage of s segments uses the files of min_n_final to s segments, in this order, and ``size = K * s``. An episode
    is on the same side in every stage and every run.

    Raises:
        UserError: a file is missing or bad, or its episodes are longer than ``size``.
    """
    files = [DATA.open(path, spec) for path in paths]
    windows = np.concatenate([whole_episodes(index, file, max_steps=size) for index, file in enumerate(files)])
    return split_datasets(files, windows, fraction=fraction, size=size)


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    data: DataOptions = field(default_factory=DataOptions)
    # Replace existing files
    overwrite: Boolean = False


def main(argv: Sequence[str] | None = None) -> None:
    """Make the requested files; see the module."""
    with exit_on_user_error():
        options = DATA.read_flags(argv, Options, output_dir="data_dir")
        files = {DATA.path(one): one for one in map(options.data.only, options.data.segment_counts)}
        if options.data.data_path is not None:
            for one in files.values():
                print(DATA.describe(DATA.ensure(one)))
            return
        if all(path.exists() for path in files) and not options.overwrite:
            first, many = next(iter(files)), len(files) > 1
            there = f"all {len(files)} files exist, '{first}' first" if many else f"'{first}' exists"
            raise UserError(f"{there}; add --overwrite true to replace {'them' if many else 'it'}.")
        for path, one in files.items():
            if options.overwrite:
                DATA.make(one, path, overwrite=True)
            elif not ensure(path, partial(DATA.make, one, path)):
                print(f"{path} already exists and is kept")  # from an interrupted start, or fewer segments
            print(DATA.describe(path))


if __name__ == "__main__":
    main()
