"""An environment's training data: generated according to flags, or given as a file or a folder to convert once.

An environment's module declares a `DataMaker`; its data script is ``DATA.main``. Required members:

    name, script, directory, prefix     its names, and where its files go
    options                             its flags, a dataclass with `data_path` and `data_dir`
    file_name                           the file for these flags; the name includes everything its content depends on
    make                                makes that file, in parts (`RATE_model.data.parts`)
    spec                                what is in it

A recipe, a frozen dataclass that is sent to other processes, describes the episodes; a module-level function plays
episodes ``first`` to ``first + count - 1``. Environments with a plain `step` record them with `record`.
"""

from __future__ import annotations

import filecmp
import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import gymnasium
import numpy as np

from RATE_model.acting.driver import DriverChoice
from RATE_model.cli.aliases import find_by_alias
from RATE_model.cli.limits import Ranged
from RATE_model.cli.options import exit_on_user_error, option_names, parse_options
from RATE_model.data.npz import PATTERN, conversion_path, resolve_data
from RATE_model.data.parts import FileOptions
from RATE_model.data.selection import split_episodes, whole_episodes
from RATE_model.data.trajectories import Learn, TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.locks import ensure
from RATE_model.system.processes import check_writable

if TYPE_CHECKING:
    from RATE_model.acting.driver import Driver
    from RATE_model.data.dataset import WindowDataset

Options = TypeVar("Options", bound=Any)
Drive: TypeAlias = Callable[[Mapping[str, Any]], int]
"""The driver's action in a step, given what is noted of it."""


@dataclass(frozen=True)
class DAggerOptions(Ranged):
    """Data driven by a trained agent, and additional files; for environments whose expert can label every step."""

    # Let a trained agent act while the expert records at every step what it would have done (DAgger): a run, or one of
    # its checkpoints. Train on it with --learn expert. The expert then makes no errors and is not perturbed. none = the
    # expert plays
    driver: Path | None = None
    # Further .h5 files to train on, such as those of earlier rounds
    add_data: tuple[Path, ...] = ()

    # Flags for errors and perturbations of the expert, 0 for none
    flaws: ClassVar[tuple[str, ...]] = ()

    def validate(self) -> None:
        """Raise a UserError for a value out of range, or if a driver is combined with given data or a flawed expert."""
        super().validate()
        if self.driver is None:
            return
        if getattr(self, "data_path", None) is not None:
            raise UserError("--driver: no data is made with --data_path; leave one of them out")
        for name in self.flaws:
            if value := getattr(self, name):
                _ = self.driver_choice  # reports a missing one
                raise UserError(
                    f"--{name} {exact(value)}: with --driver the agent acts, and the expert never errs; give --{name} 0"
                )

    @property
    def driver_choice(self) -> DriverChoice | None:
        """The driving agent. Raises UserError if it does not exist."""
        return None if self.driver is None else DriverChoice.of(self.driver)

    @property
    def driver_name(self) -> list[str]:
        """Its part of the file name."""
        choice = self.driver_choice
        return [] if choice is None else [choice.name]


class DataMaker(ABC, Generic[Options]):
    """See the module docstring. Instances are stateless."""

    # Display name, registered name, and the script as typed after `python3`
    name: ClassVar[str]
    environment: ClassVar[str]
    script: ClassVar[str]
    # The folder for files, and the prefix of conversions' names
    directory: ClassVar[Path]
    prefix: ClassVar[str]
    # Its flags
    options: ClassVar[type]
    # Its observations and actions; images are stored as uint8, vectors as float32
    spec: ClassVar[EnvironmentSpec]
    # File names in a folder to convert
    pattern: ClassVar[str] = PATTERN
    # Advice for a missing or invalid file
    hint: ClassVar[str] = "Delete it, or name another --data_path; without --data_path, training makes its data."
    # For `whole_windows`: the share of episodes to train on, and advice if none is as long as asked, which may contain
    # {size}, the steps asked for
    training_fraction: ClassVar[float] = 0.9
    advice: ClassVar[str] = "Change --segments or --context_length, or choose data of other episodes."

    @abstractmethod
    def file_name(self, options: Options) -> str:
        """The name of the file for these options, including everything its content depends on."""

    @abstractmethod
    def make(self, options: Options, path: Path, *, overwrite: bool = False, workers: int | None = None) -> object:
        """Make that file. Its content does not depend on the number of workers.

        Args:
            options: what to make.
            path: the file; it appears when it is complete.
            overwrite: replace an existing file.
            workers: processes that play; None: one per available core.

        Raises:
            UserError: the file exists and ``overwrite`` is False, it cannot be written, a package is missing, a process
                was killed, or no suitable episode is played.
        """

    def conversion(self, options: Options) -> Mapping[str, Any]:
        """Arguments of `import_npz` for a folder of .npz files."""
        return {}

    def count(self, options: Options) -> int:
        """The number of episodes to make."""
        return options.episodes

    def amount(self, options: Options) -> str:
        """What is made, in words."""
        return f"{self.count(options)} {self.name} episodes"

    def source(self, options: Options) -> tuple[Path, str] | None:
        """The given data and the flag or setting that names it; None: make the data."""
        return None if options.data_path is None else (options.data_path, "--data_path")

    def check_given(self, path: Path, options: Options) -> None:  # noqa: B027  there may be nothing to check
        """Raise a `UserError` if given data does not match the flags."""

    def versions(self) -> Mapping[str, int]:
        """Versions of the generating code, by attribute. Files of other versions are not reused."""
        return {}

    def note(self, made: Mapping[str, Any], episodes: int) -> str:
        """An additional note about a file with these attributes and this many episodes."""
        return ""

    # --- derived ---

    @property
    def description(self) -> str:
        """The first line of its --help."""
        return f"Make {self.name} trajectories."

    @cached_property
    def flags(self) -> type:
        """Flags of the script."""
        groups = [("data", self.options), ("file", FileOptions)]
        return make_dataclass(
            "Flags", [(name, kind, field(default_factory=kind)) for name, kind in groups], frozen=True
        )

    def path(self, options: Options) -> Path:
        """The file for these options."""
        return find_by_alias((options.data_dir or self.directory) / self.file_name(options))

    def is_missing(self, options: Options) -> bool:
        """Whether training has to make the file."""
        return self.source(options) is None and not self.path(options).exists()

    def check(self, options: Options) -> bool:
        """Whether training has to make the file. Raises a UserError if it or what the flags name cannot be had."""
        self.check_named(options)
        if missing := self.is_missing(options):
            check_writable(self.path(options))
        return missing

    def ensure(self, options: Options) -> Path:
        """The file to train on, made or converted if missing.

        Raises:
            UserError: given data is missing, unusable or does not match the flags, a file of another version is in the
                way, or nothing can be made or written.
        """
        if (given := self.source(options)) is not None:
            path = self.given(options)
            self.check_given(path, options)
            if given[1] != "--data_path":
                print(f"Data: {path} ({given[1]})", flush=True)
            return path
        path = self.path(options)

        def make() -> None:
            print(f"Making {self.amount(options)}: {path}", flush=True)
            self.make(options, path)

        if not ensure(path, make):
            self._check_versions(path)
        return path

    def files(self, options: Options) -> list[Path]:
        """That file, and those of `DAggerOptions.add_data`.

        Raises:
            UserError: as `ensure`; or an added file is missing, named twice, or does not match the flags.
        """
        self.check_named(options)
        added: Sequence[Path] = getattr(options, "add_data", ())
        for path in added:  # before data is made, which may take hours
            with self.open(path):
                self.check_given(path, options)
        paths = [self.ensure(options), *added]
        episodes = functools.cache(self._episodes)
        for place, path in enumerate(paths[1:], 1):  # else validation episodes would be trained on
            if any(_same(path, other) for other in paths[:place]):
                raise UserError(f"--add_data '{path}': is trained on already; name every file once")
            for other in paths[:place]:
                if both := episodes(path) & episodes(other):
                    raise UserError(
                        f"--add_data '{path}': {len(both)} of its episodes are in '{other}', too; add files of other "
                        "episodes (a driver's files begin with the same ones)"
                    )
        if getattr(options, "learn", "expert") == "recorded":
            for path in paths:
                with self.open(path) as file:
                    driver = file.attributes.get("driver")
                if driver is not None:
                    print(f"note: in '{path}' the agent {driver} acts; --learn expert trains on the expert's labels")
        return paths

    def _episodes(self, path: Path) -> set[tuple[int, bytes]]:
        """What identifies the episodes of a file, their seeds and actions; empty without recorded seeds."""
        with self.open(path) as file:
            if "seed" not in file.info_names():
                return set()
            seeds = file.info("seed")[file.starts, 0].tolist()
            ends = zip(file.starts.tolist(), (file.starts + file.lengths).tolist(), strict=True)
            return {
                (seed, hashlib.blake2b(file.actions[start:stop].tobytes(), digest_size=16).digest())
                for seed, (start, stop) in zip(seeds, ends, strict=True)
            }

    def check_named(self, options: Options) -> None:
        """Raise a UserError if data or an agent that the flags name does not exist; nothing is made or fetched."""
        given, named = self.source(options) or (None, "")
        if given is not None and not os.path.exists(given):
            raise UserError(f"{named} '{given}': does not exist")
        for path in getattr(options, "add_data", ()):
            if not os.path.isfile(path):
                raise UserError(f"--add_data '{path}': does not exist")
        _ = getattr(options, "driver_choice", None)  # looks for it

    def given(self, options: Options, target: Path | None = None, *, overwrite: bool = False) -> Path:
        """The given file, or the conversion of the given folder to ``target``.

        With ``overwrite`` a folder is converted again, replacing ``target``.
        """
        given = self.source(options)
        assert given is not None, "only called if data is given"
        (source, named), conversion = given, dict(self.conversion(options))
        attributes = {"environment": self.environment, "generator": "imported", **conversion.pop("attributes", {})}
        return resolve_data(
            source,
            target or conversion_path(source, options.data_dir or self.directory, self.prefix),
            pattern=self.pattern,
            named=named,
            observation_shape=self.spec.observation_shape,
            num_actions=self.spec.num_actions,
            overwrite=overwrite,
            attributes=attributes,
            **conversion,
        )

    def open(self, path: Path, spec: EnvironmentSpec | None = None) -> TrajectoryFile:
        """Open a file of trajectories of this spec (None: the usual one). Raises UserError; see `TrajectoryFile`."""
        spec = spec or self.spec
        return TrajectoryFile(
            path,
            observation_shape=spec.observation_shape,
            observation_dtype="uint8" if spec.is_image else "float32",
            num_actions=spec.num_actions,
            hint=self.hint,
        )

    def whole_windows(
        self, paths: Sequence[Path], *, size: int, shortest: int = 1, learn: Learn = "recorded"
    ) -> tuple[WindowDataset, WindowDataset]:
        """Training and validation datasets of the whole episodes in these files; see `whole_sides`.

        Raises:
            UserError: a file is missing or invalid, no episode has ``shortest`` to ``size`` steps, there are too few to
                split, or a file does not contain the targets.
        """
        files, advice = [self.open(path) for path in paths], self.advice.format(size=size)
        fraction = self.training_fraction
        return whole_sides(files, size=size, shortest=shortest, advice=advice, fraction=fraction, learn=learn)

    def describe(self, path: Path) -> str:
        """One line on a file's content and origin."""
        with TrajectoryFile(path) as file:
            made, lengths, returns = file.attributes, file.lengths, file.episode_returns()
            driven = "driver" in made
            agreed = (file.expert_actions() == file.column("actions")).mean() if driven else 1.0
        least, most = (f"{round(float(value), 2):g}" for value in (returns.min(), returns.max()))
        spread = f" ({least} to {most})" if least != most else ""
        steps = " to ".join(map(str, sorted({lengths.min(), lengths.max()})))
        return (
            f"{path}: {len(lengths)} episodes of {steps} steps, mean return "
            f"{returns.mean():.2f}{spread}, {path.stat().st_size / 1e6:.1f} MB"
            f"{self.note(made, len(lengths))}"
            + (f"; the expert would have done the same at {agreed:.2f} of the steps" if driven else "")
        )

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Make or convert data as the flags say (None: the command line), and print a summary."""
        with exit_on_user_error():
            flags = self.read_flags(argv)
            options, file = flags.data, flags.file
            if getattr(options, "add_data", ()):
                raise UserError("--add_data: only adds files to training; this script makes one file, so leave it out")
            if options.data_path is not None:
                if not options.data_path.is_dir():
                    raise UserError(f"--data_path '{options.data_path}': must be a folder of {self.pattern} to convert")
                path = self.given(options, file.output, overwrite=file.overwrite)
            else:
                path = file.output or self.path(options)
                check_writable(path)  # before its ingredients are fetched
                self.make(options, path, overwrite=file.overwrite, workers=file.workers)
            print(self.describe(path))

    def read_flags(self, argv: Sequence[str] | None, options: type | None = None, **aliases: str) -> Any:
        """The flags of the data script, of `options` or `flags`. A training's config file may set them, too."""
        prog, also = f"python3 {self.script}", self._training_options
        return parse_options(
            options or self.flags, argv=argv, prog=prog, description=self.description, aliases=aliases, also=also
        )

    def _training_options(self) -> set[str]:
        """What the train script of this data's environment calls its options."""
        from RATE_model.environments.find import in_folder  # imports the environment, which imports its data

        module = type(self).__module__
        package = Path(self.script).parent.parts if module == "__main__" else module.split(".")[:-1]
        environment = in_folder(".".join(package))
        return option_names(environment.config) | environment.aliases.keys() if environment is not None else set()

    def _check_versions(self, path: Path) -> None:
        """Raise a `UserError` if a file was made by another version of the code."""
        if not (versions := self.versions()):
            return
        with TrajectoryFile(path, hint=self.hint) as file:
            made = file.attributes
        for name, version in versions.items():
            if made.get(name) != version:
                known, what = made.get(name, "unknown"), name.removesuffix("_version")
                raise UserError(
                    f"'{path}' was made by version {known} of the {what}; this is version {version}. Give another "
                    "--data_dir to make it again, or name it with --data_path to train on it anyway"
                )


def exact(number: float) -> str:
    """A number for a file name, as short as possible: different numbers never look the same."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def record(
    environment: gymnasium.Env,
    first: tuple[Any, Mapping[str, Any]],
    act: Callable[[Any, Mapping[str, Any], Drive | None], tuple[int, Mapping[str, Any]]],
    driver: Driver | None = None,
) -> dict[str, Any]:
    """Play an episode to its end and return it as arguments of `TrajectoryWriter.add_episode`; T steps.

    Args:
        environment: already reset.
        first: the observation and info of that reset.
        act: maps an observation, an info, and how the driver acts (None: no driver) to a discrete action and the step's
            infos: NumPy scalars and arrays, under the same names every time.
        driver: the acting agent (DAgger); `act` then calls it once, with what it notes of the step, and returns its
            action.

    Returns:
        observations (T, ...), actions (T,) uint8, rewards (T,) float32, terminal, and infos, (T, ...) each.
    """
    (observation, info), steps = first, []
    terminated, truncated, reward = False, False, 0.0
    while not (terminated or truncated):
        drive = None if driver is None else partial(driver.act, observation, float(reward))
        (action, noted), seen = act(observation, info, drive), observation
        observation, reward, terminated, truncated, info = environment.step(action)
        steps.append((seen, action, reward, noted))
    observations, actions, rewards, notes = zip(*steps, strict=True)
    return {
        "observations": np.stack(observations),
        "actions": np.array(actions, dtype=np.uint8),
        "rewards": np.array(rewards, dtype=np.float32),
        "terminal": bool(terminated),
        "infos": {name: np.stack([noted[name] for noted in notes]) for name in notes[0]},
    }


def _same(path: Path, other: Path) -> bool:
    """Whether two files are the same or copies of each other."""
    return path.samefile(other) or filecmp.cmp(path, other, shallow=False)


def split_datasets(
    files: Sequence[TrajectoryFile],
    windows: np.ndarray,
    held_out: np.ndarray | None = None,
    *,
    fraction: float,
    seed: int = 0,
    **options: Any,
) -> tuple[WindowDataset, WindowDataset]:
    """A training and a validation dataset with disjoint episodes, the same in every run.

    Args:
        files: the trajectory files.
        windows: (W, 3), for training; see `RATE_model.data.selection`.
        held_out: windows for validation; None: the same.
        fraction, seed: arguments of `split_episodes`.
        options: arguments of `WindowDataset`.
    """
    from RATE_model.data.dataset import WindowDataset  # late: generating processes do without torch

    training, validation = split_episodes(windows, files, fraction=fraction, seed=seed)
    if held_out is not None:
        _, validation = split_episodes(held_out, files, fraction=fraction, seed=seed)
    dataset = WindowDataset(files, training, **options)
    return dataset, dataset.with_windows(validation)


def whole_sides(
    files: Sequence[TrajectoryFile], *, size: int, shortest: int = 1, advice: str, fraction: float, **options: Any
) -> tuple[WindowDataset, WindowDataset]:
    """All episodes of ``shortest`` to ``size`` steps, padded to ``size``: a training and a validation dataset.

    The number of the others, which are left out, is printed. An episode without an end does not count.

    Args:
        files: to read.
        size: steps of a window: --segments times --context_length.
        shortest: steps of the shortest episodes.
        advice: what to do if there is none.
        fraction, options: see `split_datasets`.

    Raises:
        UserError: no episode with an end has such a length, there are too few to split, or a file does not contain the
            targets.
    """

    def fit(lengths: np.ndarray) -> np.ndarray:
        return (lengths >= shortest) & (lengths <= size)

    names = ", ".join(f"'{file.path}'" for file in files)
    lengths = np.concatenate([file.lengths[file.whole] for file in files])
    if not len(lengths):
        raise UserError(f"{names}: nothing to train on: no episode has an end. {advice}")
    others = int((~fit(lengths)).sum())
    asked = f"{size}" if shortest == size else f"at most {size}"
    found = f"they have {lengths.min()} to {lengths.max()}"
    if others == len(lengths):
        raise UserError(
            f"{names}: nothing to train on: none of {others} episodes has {asked} steps (--segments times "
            f"--context_length); {found}. {advice}"
        )
    if others:
        print(
            f"{others} of {len(lengths)} episodes are left out: {found} steps, not {asked} (--segments times "
            "--context_length)."
        )
    windows = [
        whole_episodes(index, file, size, min_steps=shortest)
        for index, file in enumerate(files)
        if fit(file.lengths[file.whole]).any()
    ]
    return split_datasets(files, np.concatenate(windows), fraction=fraction, size=size, **options)
