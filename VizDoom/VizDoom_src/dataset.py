"""ViZDoom-Two-Colors trajectories: making or converting them, and loading them as windows.

    python3 VizDoom/VizDoom_src/dataset.py --episodes 5000
    python3 VizDoom/VizDoom_src/dataset.py --episodes 5000 --steps 150 --workers 8
    python3 VizDoom/VizDoom_src/dataset.py --data_path iterative_data

A file is made by the scripted expert, or converted from a folder of the published ``train_data_*.npz``. It goes to
VizDoom/VizDoom_data, where training finds it by the same flags; with --output it goes elsewhere, and training takes it
as --data_path. When a run is interrupted, the same command goes on where it was.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from RATE_model.cli.limits import at_least, at_most
from RATE_model.cli.options import changeable, exit_on_user_error, parse_options
from RATE_model.cli.spellings import existing_file
from RATE_model.data.npz import conversion_path, given_data, require_expert_labels
from RATE_model.data.parts import FileOptions
from RATE_model.data.trajectories import Learn, TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.system.locks import ensure
from VizDoom.VizDoom_src.env import ENV_ID, NUM_ACTIONS, OBSERVATION_SHAPE, PUBLISHED_CAP
from VizDoom.VizDoom_src.expert import View
from VizDoom.VizDoom_src.generate import EXPERT_VERSION, Recipe, generate
from VizDoom.VizDoom_src.scenario import BEFORE, BUILDER_VERSION, Scenario

if TYPE_CHECKING:
    from RATE_model.data.dataset import WindowDataset

DATA_DIRECTORY = Path(__file__).resolve().parents[1] / "VizDoom_data"
MAX_EPISODES = 200_000
TRAINING_FRACTION = 0.9
SPLIT_SEED = 0


@dataclass(frozen=True)
class DataOptions:
    """Which trajectories to make or to train on."""

    # Episodes, as many red as green; of an odd number one more is red
    episodes: int = 5000
    # Steps of every episode: 90 or 150 in the published data. Those in which the player dies before are left out
    steps: int = 90
    # What the expert knows of: the items before its eyes, or all of them
    view: View = "limited"
    # Probability of a random action at each step of the expert
    noise: float = 0.0
    # Share of the time in which the player goes for the wrong items: expert data with perturbations (DART)
    perturbation: float = 0.0
    # What a training learns at every step: the action that was taken, or the one that the expert would have taken;
    # files hold both
    learn: Learn = "recorded"
    # The scenario that is played
    scenario: Scenario = field(default_factory=Scenario)
    # Data to read instead: an .h5 file made here, or a folder of train_data_*.npz. --episodes, --steps, --view,
    # --noise and --perturbation then do nothing; the scenario's flags say what is played in evaluations, and must be
    # those of the file
    data_path: Path | None = changeable(None)
    # Directory of files that are made; none = VizDoom/VizDoom_data
    data_dir: Path | None = changeable(None)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        self.scenario.validate()
        at_least(10, episodes=self.episodes)
        at_most(MAX_EPISODES, episodes=self.episodes)
        at_least(1, steps=self.steps)
        at_most(PUBLISHED_CAP, steps=self.steps)
        at_least(0, noise=self.noise, perturbation=self.perturbation)
        at_most(1, noise=self.noise, perturbation=self.perturbation)
        require_expert_labels(self.data_path, self.learn)

    def recipe(self) -> Recipe:
        """What is played."""
        return Recipe(self.scenario, self.steps, self.view, self.noise, self.perturbation)


def dataset_path(options: DataOptions) -> Path:
    """The file of what these options make; its name holds all of them that its content depends on."""
    parts = [f"vizdoom_two_colors_{options.view}_steps{options.steps}"]
    standard = Scenario().rules
    parts += [f"{name}_{value}" for name, value in options.scenario.rules.items() if value != standard[name]]
    if (graphics := options.scenario.settled().graphics) != BEFORE["graphics"]:  # files have had names before
        parts.append(f"graphics_{graphics}")
    if options.noise:
        parts.append(f"noise{options.noise:g}")
    if options.perturbation:
        parts.append(f"perturbation{options.perturbation:g}")
    return existing_file((options.data_dir or DATA_DIRECTORY) / f"{'_'.join(parts)}_n{options.episodes}.h5")


def ensure_dataset(options: DataOptions) -> list[Path]:
    """The files to train on, making or converting what is missing.

    Raises:
        UserError: the data that was named is missing, unusable or of another scenario, a file of an earlier version is
            in the way, or nothing could be made or written.
    """
    if options.data_path is not None:
        path = given_dataset(options)
        _check_scenario(path, options.scenario)
        return [path]
    path = dataset_path(options)

    def make() -> None:
        print(f"Making {options.episodes} ViZDoom-Two-Colors episodes: {path}", flush=True)
        generate(options.recipe(), options.episodes, path)

    if not ensure(path, make):
        _check_versions(path)
    return [path]


def _check_scenario(path: Path, scenario: Scenario) -> None:
    """Raise a `UserError` if a file tells that another scenario was played."""
    with open_dataset(path) as file:
        made = file.attributes
    wanted = asdict(scenario.settled())
    if "variant" in made:
        made = BEFORE | made
    elif wanted["graphics"] != "published":
        print(
            f"'{path}' does not say which graphics it shows. Published files show --graphics published; evaluations "
            f"play --graphics {wanted['graphics']}."
        )
    if other := [name for name, value in wanted.items() if made.get(name, value) != value]:
        of_file, of_flags = (
            " ".join(f"--{name} {str(values[name]).lower()}" for name in other) for values in (made, wanted)
        )
        raise UserError(
            f"--data_path '{path}': it was made with {of_file}, and the flags are {of_flags}: evaluations would play "
            f"another game than the data shows. Add {of_file}"
        )


def _check_versions(path: Path) -> None:
    """Raise a `UserError` if a file was made by another version of the scripted expert or of the scenario's builder."""
    with open_dataset(path) as file:
        made = file.attributes
    for name, version in (("expert", EXPERT_VERSION), ("builder", BUILDER_VERSION)):
        if made.get(name, version) != version:
            raise UserError(
                f"'{path}' was made by version {made[name]} of the {name}, and this one is {version}. Give "
                "another --data_dir, where it is made again, or name it with --data_path to train on it all the same"
            )


def given_dataset(options: DataOptions, target: Path | None = None, *, overwrite: bool = False) -> Path:
    """The file that `data_path` names, or the conversion of the folder that it names, into ``target``.

    With ``overwrite`` a folder is converted again, and whatever ``target`` is is replaced.
    """
    source = options.data_path
    assert source is not None
    return given_data(
        source,
        target or conversion_path(source, options.data_dir or DATA_DIRECTORY, "vizdoom"),
        observation_shape=OBSERVATION_SHAPE,
        num_actions=NUM_ACTIONS,
        infos=("is_red",),
        overwrite=overwrite,
        attributes={"environment": ENV_ID, "generator": "imported"},
    )


def open_dataset(path: Path) -> TrajectoryFile:
    """A ViZDoom-Two-Colors trajectory file, checked. Raises UserError; see `TrajectoryFile`."""
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
    learn: Learn = "recorded",
    fraction: float = TRAINING_FRACTION,
    split_seed: int = SPLIT_SEED,
) -> tuple["WindowDataset", "WindowDataset"]:
    """All episodes of these files of exactly ``size`` steps: a training and a validation dataset.

    As in the published loader, episodes of other lengths are left out: nothing is padded, and a part of a longer
    episode would promise rewards from beyond its end. Their number is printed. An episode is on the same side in every
    run: the split depends on ``split_seed`` only.

    Raises:
        UserError: a file is missing or bad, no episode has this length, there are too few to split, or a file does not
            tell what is to be learned.
    """
    # Late, as torch comes with it: --help and the processes that play do without.
    from RATE_model.data.dataset import WindowDataset
    from RATE_model.data.selection import split_episodes, whole_episodes

    files = [open_dataset(path) for path in paths]
    lengths = np.concatenate([file.lengths for file in files])
    others = int((lengths != size).sum())
    if others == len(lengths):
        names = ", ".join(f"'{path}'" for path in paths)
        raise UserError(
            f"{names}: nothing to train on: none of {others} episodes has {size} steps (--segments times "
            f"--context_length); they have {lengths.min()} to {lengths.max()}. Change one of these flags, or choose "
            f"data of that length: --steps {size}."
        )
    if others:
        print(
            f"{others} of {len(lengths)} episodes are left out: they have {lengths.min()} to {lengths.max()} steps, "
            f"not {size} (--segments times --context_length)."
        )
    windows = [
        whole_episodes(index, file, size, min_steps=size) for index, file in enumerate(files) if size in file.lengths
    ]
    training, validation = split_episodes(np.concatenate(windows), files, fraction=fraction, seed=split_seed)
    dataset = WindowDataset(files, training, size=size, learn=learn)
    return dataset, dataset.with_windows(validation)


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    data: DataOptions = field(default_factory=DataOptions)
    file: FileOptions = field(default_factory=FileOptions)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.data.data_path is not None and not self.data.data_path.is_dir():
            raise UserError(f"--data_path '{self.data.data_path}': must be a folder of train_data_*.npz to convert")


def describe(path: Path) -> str:
    """One line on what a file holds and how it came about."""
    with open_dataset(path) as file:
        made, lengths, starts = file.attributes, file.lengths, file.starts
        returns = file.returns_to_go()[starts]
    line = (
        f"{path}: {len(lengths)} episodes of {lengths.min()} to {lengths.max()} steps, mean return "
        f"{returns.mean():.2f}, {path.stat().st_size / 1e6:.1f} MB"
    )
    if "vizdoom" in made:
        line += "; {graphics} graphics, vizdoom {vizdoom}".format(**BEFORE | made)
    dropped = made.get("played", len(lengths)) - len(lengths)
    return line + (f"; {dropped} more were too short and dropped" if dropped else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Make or convert what the flags (None: of the command line) ask for; see the module."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python3 VizDoom/VizDoom_src/dataset.py",
            description="Make ViZDoom-Two-Colors trajectories with the scripted expert.",
        )
        if options.data.data_path is not None:
            path = given_dataset(options.data, options.file.output, overwrite=options.file.overwrite)
        else:
            path = options.file.output or dataset_path(options.data)
            recipe, episodes = options.data.recipe(), options.data.episodes
            generate(recipe, episodes, path, overwrite=options.file.overwrite, workers=options.file.workers)
        print(describe(path))


if __name__ == "__main__":
    main()
