"""Episodes from any source as a training dataset, checked for consistency and against their environment."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from RATE_model.cli.limits import check_seed
from RATE_model.data.arrays import TrajectoryArrays
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.ends import (
    SUCCESSORS,
    Ends,
    UnclearEnds,
    can_mark_every_end,
    find_ends,
    kind_of,
    note_on_ignored,
    possible_marks,
    successors_follow,
    within_episode,
)
from RATE_model.data.minari import is_minari, minari_folder, read_minari, write_minari
from RATE_model.data.npz import Refused, read_npz
from RATE_model.data.selection import split_episodes, strided_windows, whole_episodes
from RATE_model.data.trajectories import FIRST_SEEN, Trajectories, TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.environments.spaces import Actions, Observations, spec_of
from RATE_model.errors import UserError
from RATE_model.objectives.privileged import PREFIX
from RATE_model.own.making import MAX_STEPS, EnvironmentLike, known_step_limit, make_environment
from RATE_model.spec import EnvironmentSpec

# Possible names of an episode's arrays.
_KEYS = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
}
_SPLIT_SEED = 0
_MAX_ACTIONS = 2**20  # numbers of an action, each of which has an output


class Dataset:
    """Episodes, and the spaces of their observations and actions.

    Attributes:
        trajectories: the steps as a model sees them.
        observations, actions: their spaces.
        metadata: notes of the maker.

    Make one with `from_episodes`, `from_hdf5`, `from_npz`, `from_minari` or `collect`. All take an `environment`: a
    registered id, ``module:Class``, an environment, or a function that makes one. Spec, loss and the ranges of actions
    follow from its spaces or, without an environment, from the data.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        observations: Observations,
        actions: Actions,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.trajectories, self.observations, self.actions = trajectories, observations, actions
        self.metadata = dict(metadata or trajectories.attributes)
        if observations.images:  # a reader of the files written from here needs them
            self.metadata["images"] = [list(shape) for shape in observations.images]
        if (count := int(trajectories.whole.sum())) < 2:
            have = f"{count} finished episode{'s' * (count != 1)}"
            raise UserError(f"{self.name} has {have}; at least 2 are needed: some are held out for validation")

    # --- sources ---

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any]],
        *,
        environment: EnvironmentLike | None = None,
        spaces: tuple[Space | None, Space | None] = (None, None),
        name: str = "the dataset",
        metadata: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """From episodes as dicts of arrays.

        Args:
            episodes: each with `observations` (T, ...) or (T + 1, ...), or a dict of these; `actions` (T, ...);
                `rewards` (T,); and, if known, `terminals`, `timeouts` or other marks of the end (see
                `RATE_model.data.ends`): (T,) or one value. Also `infos`, a dict of privileged arrays (T, ...) for
                `--aux`, `--oracle` and probes, the same in all episodes.
            environment: the environment that the episodes come from.
            spaces: of observations and actions, without an environment; None: inferred from the data.
            name: the data's name in messages.
            metadata: any notes.

        Raises:
            UserError: there are fewer than two episodes; one lacks an array, or is marked to end before its last step;
                or its arrays do not match one another, the other episodes or the environment. The message names the
                episode, the key and both values.
        """
        if not isinstance(episodes, Iterable):
            raise UserError(f"{name} is {type(episodes).__name__}; give a list of episodes, dicts of arrays")
        listed = list(episodes)
        if not listed:
            raise UserError(f"{name} has no episodes")
        columns = [_columns(episode, number, name) for number, episode in enumerate(listed)]
        made = None if environment is None else make_environment(environment)
        if made is not None:
            observation_space, action_space = made.observation_space, made.action_space
            made.close()
        else:
            observation_space, action_space = spaces
            if observation_space is None or action_space is None:
                guess = _infer_spaces(columns, name)
                observation_space = guess[0] if observation_space is None else observation_space
                action_space = guess[1] if action_space is None else action_space
        observations = Observations.of(observation_space, images=(metadata or {}).get("images", ()))
        actions = Actions.of(action_space)
        parts = [_encoded(episode, observations, actions, number, name) for number, episode in enumerate(columns)]
        trajectories = TrajectoryArrays(
            *(np.concatenate([part[index] for part in parts]) for index in range(3)),
            lengths=np.array([len(part[2]) for part in parts]),
            terminals=np.array([episode["terminal"] for episode in columns]),
            infos=_joined_infos(columns, name),
            name=name,
        )
        return cls(trajectories, observations, actions, metadata=metadata)

    @classmethod
    def from_hdf5(cls, path: str | Path, *, environment: EnvironmentLike | None = None) -> Dataset:
        """From a file in this project's or D4RL's layout; see `RATE_model.data.trajectories`.

        In a file from elsewhere that does not mark truncated episodes, they end at the environment's step limit.
        """
        limit = None if environment is None else known_step_limit(environment)
        file = TrajectoryFile(Path(path).expanduser(), max_episode_steps=limit)
        if environment is None and file.actions.dtype.kind in "iuf" and (file.discrete or _unit(file.actions)):
            first = {"observations": file.read(0, 1)[0], "actions": file.actions}
            observation_space, action_space = _infer_spaces([first], str(path))
            observations = Observations.of(observation_space, images=file.attributes.get("images", ()))
            if observations.shape == file.observation_shape:
                return cls(file, observations, Actions.of(action_space))
        with file:
            episodes = [
                {
                    "observations": file.read(int(start), int(start + length))[0],
                    "actions": file.actions[start : start + length],
                    "rewards": file.rewards[start : start + length],
                    "terminals": terminal,
                    "infos": _infos_of(file, int(start), int(start + length)),
                }
                for start, length, terminal in zip(*_whole(file), strict=True)
            ]
        return cls.from_episodes(episodes, environment=environment, name=f"'{path}'", metadata=file.attributes)

    @classmethod
    def from_npz(
        cls, folder: str | Path, *, environment: EnvironmentLike | None = None, pattern: str = "*.npz"
    ) -> Dataset:
        """From a folder of .npz files with the usual array names, each with one episode, or several with marked ends.

        Arrays called ``infos/NAME`` are privileged; those called ``observations/NAME`` are the parts of a dict. All
        marks of ends are read, see `RATE_model.data.ends`. A file ends its only episode; an unfinished one after others
        is left out. What is left out or doubtful is printed.

        Raises:
            UserError: there are no files, or one is damaged, has other content, or its marks of ends are contradictory.
        """
        episodes: list[dict[str, Any]] = []
        notes: dict[str, list[Path]] = {}
        for path in _npz_files(Path(folder).expanduser(), pattern):
            found, said = _npz(path)
            episodes += found
            for note in said:
                notes.setdefault(note, []).append(path)
        for note, paths in notes.items():
            more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            print(f"note: '{paths[0]}'{more} {note}", flush=True)
        return cls.from_episodes(episodes, environment=environment, name=f"'{folder}'")

    @classmethod
    def from_minari(cls, dataset: str | Path, *, environment: EnvironmentLike | None = None) -> Dataset:
        """From a Minari dataset: its folder, or its name below MINARI_DATASETS_PATH (or ~/.minari/datasets).

        Raises:
            UserError: there is no such dataset, or it is damaged.
        """
        folder = minari_folder(dataset)
        episodes, metadata = read_minari(folder)
        known = metadata.pop("spaces")
        return cls.from_episodes(
            episodes, environment=environment, spaces=known, name=f"'{dataset}'", metadata=metadata
        )

    @classmethod
    def collect(
        cls,
        environment: EnvironmentLike,
        policy: Callable[[Any], Any] | None = None,
        episodes: int = 100,
        *,
        seed: int = 0,
    ) -> Dataset:
        """Play and record episodes.

        Args:
            environment: the environment.
            policy: observation -> action, both as in the environment's spaces; None: random actions.
            episodes: their number, with seeds `seed`, `seed` + 1, ... counted from 10,000: evaluations play lower
                seeds.
            seed: of the first episode, and of random actions.
        """
        check_seed(seed)
        with closing(make_environment(environment)) as scene:
            scene.action_space.seed(seed)
            recorded = [
                _episode(scene, policy or (lambda observation: scene.action_space.sample()), FIRST_SEED + seed + number)
                for number in range(episodes)
            ]
        return cls.from_episodes(recorded, environment=environment, name="the collected dataset")

    @classmethod
    def open(cls, source: str | Path, *, environment: EnvironmentLike | None = None) -> Dataset:
        """Open any kind of path: an HDF5 file, a folder of .npz files, or a Minari dataset's folder or name.

        Raises:
            UserError: the source is not a dataset of any of these kinds.
        """
        if not isinstance(source, str | Path):
            raise UserError(
                f"data is of type {type(source).__name__}; give a Dataset or a path (a list of episodes: "
                "Dataset.from_episodes)"
            )
        path = Path(source).expanduser()
        if path.is_file():
            return cls.from_hdf5(path, environment=environment)
        if path.is_dir() and not is_minari(path):
            return cls.from_npz(path, environment=environment)
        if path.suffix in (".h5", ".hdf5", ".npz"):
            raise UserError(f"{source} does not exist; give an HDF5 file, a folder of .npz files, or a Minari dataset")
        return cls.from_minari(source, environment=environment)

    # --- content ---

    def __len__(self) -> int:
        """The number of episodes, without an unfinished last one."""
        return int(self.trajectories.whole.sum())

    def __repr__(self) -> str:
        lengths, returns = self.trajectories.lengths[self.trajectories.whole], self.returns
        return (
            f"{self.name}: {len(self)} episodes of {lengths.min()} to {lengths.max()} steps, returns {returns.min():g} "
            f"to {returns.max():g} (mean {returns.mean():g})"
        )

    @property
    def name(self) -> str:
        """The name of the data in messages."""
        return str(self.trajectories.path)

    @property
    def returns(self) -> np.ndarray:
        """(E,) float32, the return of each episode, without an unfinished last one."""
        return self.trajectories.returns_to_go()[self.trajectories.starts[self.trajectories.whole]]

    def spec(self) -> EnvironmentSpec:
        """The spec of this data: vectors are normalised by its statistics, returns-to-go divided by the largest."""
        mean = std = None
        pixels = sum(map(math.prod, self.observations.images))  # come first, and are not normalised
        if not self.observations.is_image and pixels < self.observations.shape[0]:
            observations = self.trajectories.load()[0][:, pixels:].astype(np.float64)
            mean, std = observations.mean(0), observations.std(0)
            std = np.where(std > 1e-6, std, 1.0)
        largest = float(np.abs(self.trajectories.returns_to_go()).max())
        return spec_of(self.observations, self.actions, mean=mean, std=std, return_scale=1 / max(largest, 1e-6))

    def windows(self, steps: int, *, fraction: float = 0.9) -> tuple[WindowDataset, WindowDataset]:
        """Training and validation windows of at most this many steps.

        Episodes that fit are whole windows; longer ones are cut into pieces that overlap by half, the last of which
        ends with the episode. Every episode is on one side only, the same in every run.
        """
        data = self.trajectories
        longer = data.whole & (data.lengths > steps)
        pieces = [whole_episodes(0, data, steps)] if (data.whole & ~longer).any() else []
        if longer.any():
            pieces += [strided_windows(0, data, steps, max(1, steps // 2))]
            ends = data.starts[longer] + data.lengths[longer] - steps
            pieces += [np.stack([np.zeros_like(ends), ends, np.full_like(ends, steps)], axis=1)]
        windows = np.unique(np.concatenate(pieces), axis=0)
        training, validation = split_episodes(windows, [data], fraction=fraction, seed=_SPLIT_SEED)
        dataset = WindowDataset([data], training, size=steps)
        return dataset, dataset.with_windows(validation)

    # --- writing ---

    def to_hdf5(self, path: str | Path) -> Path:
        """Write a file in this project's layout, with actions in the environment's space; returns its path."""
        data, path = self.trajectories, Path(path)
        first = self.actions.store(data.actions[:1])
        with TrajectoryWriter(
            path,
            observation_shape=data.observation_shape,
            observation_dtype=data.observation_dtype,
            action_shape=first.shape[1:],
            action_dtype=first.dtype,
            attributes=self.metadata,
        ) as writer:
            ends = zip(data.starts.tolist(), data.lengths.tolist(), data.terminals, data.whole, strict=True)
            for start, length, terminal, whole in ends:
                observations, actions = data.read(start, start + length)
                actions = self.actions.store(actions)
                writer.add_episode(
                    observations,
                    actions,
                    data.rewards[start : start + length],
                    terminal=bool(terminal),
                    infos=_infos_of(data, start, start + length),
                    unfinished=not whole,
                )
        return path

    def to_minari(self, dataset: str | Path, **metadata: Any) -> Path:
        """Write a Minari dataset, losslessly and without an unfinished last episode; returns its folder.

        Args:
            dataset: a folder, or a name below MINARI_DATASETS_PATH (or ~/.minari/datasets), such as mine/maze-v0.
            metadata: for Minari, such as author, algorithm_name, code_permalink, environment (its id).
        """
        data = self.trajectories

        def episode(start: int, length: int, terminal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
            observations, actions = data.read(start, start + length)
            return observations, self.actions.store(actions), data.rewards[start : start + length], terminal

        episodes = (episode(*end) for end in zip(*_whole(data), strict=True))
        return write_minari(dataset, episodes, self.observations.box, self.actions.stored, self.metadata | metadata)


# Seeds of data; evaluations use lower ones.
FIRST_SEED = 10_000


def _npz_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder, sorted by name. Raises UserError if there are none."""
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not found:
        raise UserError(f"'{folder}' has no files {pattern}" if folder.is_dir() else f"'{folder}' is not a folder")
    return found


def _npz(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The episodes of a file, one or several with marked ends, and notes, worded as sentences without a subject."""
    episode, others = _npz_arrays(path)
    infos = {name.removeprefix(PREFIX): values for name, values in others.items() if name.startswith(PREFIX)}
    steps = len(episode["rewards"])
    marks = _marks(others, steps, f"'{path}'")
    ends = _npz_ends(path, marks, others, episode["observations"], steps)
    stops = np.flatnonzero(np.append(ends.last[:-1], True)) + 1
    several = len(stops) > 1
    unfinished = ends.open or (several and not ends.last[-1])
    notes = list(ends.notes) if several else []  # of a single episode they say nothing
    if unknown := possible_marks(name for name, values in others.items() if values.shape[:1] == (steps,)):
        notes.append(note_on_ignored(unknown))
    if unfinished:
        notes.append("ends within an episode, which is left out")
    if not several:
        return [] if unfinished else [marks | episode | {"infos": infos}], notes
    _check_steps(path, episode | {f"{PREFIX}{name}": values for name, values in infos.items()}, steps)
    pieces = list(zip([0, *stops[:-1]], stops, strict=True))[: len(stops) - unfinished]
    return [
        {key: _some(values, slice(start, stop)) for key, values in episode.items()}
        | {"infos": {name: values[start:stop] for name, values in infos.items()}}
        | {"terminals": bool(ends.terminal[stop - 1])}
        for start, stop in pieces
    ], notes


def _npz_arrays(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Observations, actions and rewards of a file under these names, and its other arrays.

    Raises:
        UserError: the file is damaged, or one of the three is missing.
    """
    try:
        arrays, _ = read_npz(path)
    except Refused as reason:
        raise UserError(f"'{path}' {reason}; replace or remove it") from None
    episode: dict[str, Any] = {key: arrays[name] for key, names in _KEYS.items() for name in names if name in arrays}
    for beginning in (f"{name}/" for name in _KEYS["observations"]):  # of a dict
        if parts := {name.removeprefix(beginning): arrays[name] for name in arrays if name.startswith(beginning)}:
            if "observations" in episode:
                names = ", ".join(name for name in arrays if name.partition("/")[0] in _KEYS["observations"])
                raise UserError(f"'{path}' has observations several times ({names}); give one array or one dict")
            episode["observations"] = parts
    if missing := [key for key in _KEYS if key not in episode]:
        raise UserError(f"'{path}' has no {', '.join(missing)} (it has: {', '.join(arrays) or 'nothing'})")
    if not episode["rewards"].size or not episode["rewards"].ndim:
        raise UserError(f"'{path}': 'rewards' have no steps")
    used = {name for names in _KEYS.values() for name in names}
    return episode, {name: values for name, values in arrays.items() if name.partition("/")[0] not in used}


def _npz_ends(
    path: Path, marks: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], observations: Any, steps: int
) -> Ends:
    """Where episodes end in a file, from its marks and from the successors of its observations."""
    after = None if isinstance(observations, dict) else next((name for name in SUCCESSORS if name in others), None)
    follows = None
    try:
        if after is not None:
            _check_steps(path, {"observations": observations}, steps)
            if others[after].shape != observations[:steps].shape:
                shape = observations[:steps].shape
                raise UnclearEnds(f"has '{after}' of shape {others[after].shape}; expected {shape}")
            follows = successors_follow(observations[:steps], others[after])
        return find_ends(marks, steps, follows=follows)
    except UnclearEnds as unclear:
        raise UserError(f"'{path}' {unclear}") from None


def _marks(arrays: Mapping[Any, Any], steps: int, place: str) -> dict[str, np.ndarray]:
    """The arrays that mark ends, by name; an episode's name is none."""
    named = [name for name in arrays if isinstance(name, str) and kind_of(name)]
    found = {name: _array(arrays[name], place, name) for name in named}
    return {
        name: np.atleast_1d(values)
        for name, values in found.items()
        if values.dtype.kind in "biuf" or values.shape[:1] == (steps,) or kind_of(name) != "number"
    }


def _whole(data: Trajectories) -> tuple[list[int], list[int], list[bool]]:
    """Start, length and whether it ended in a terminal state, of every episode that has an end."""
    return data.starts[data.whole].tolist(), data.lengths[data.whole].tolist(), data.terminals[data.whole].tolist()


def _check_steps(path: Path, arrays: Mapping[str, Any], steps: int) -> None:
    """Raise a UserError for an array without this many steps: it cannot be cut where episodes end. Observations may
    have one more."""
    for key, values in arrays.items():
        if isinstance(values, dict):
            _check_steps(path, {f"{key}/{name}": part for name, part in values.items()}, steps)
        elif (found := len(values) if values.ndim else 0) != steps and (found != steps + 1 or key[:3] != "obs"):
            raise UserError(f"'{path}': '{key}' have {found or 'no'} steps, 'rewards' {steps}")


def _some(values: Any, steps: slice) -> Any:
    """Some steps of an array, or of a dict of them."""
    return {name: part[steps] for name, part in values.items()} if isinstance(values, dict) else values[steps]


def _episode(environment: gymnasium.Env, policy: Callable[[Any], Any], seed: int) -> dict[str, Any]:
    """Play one episode."""
    observation, _ = environment.reset(seed=seed)
    steps: list[tuple[Any, Any, float]] = []
    terminated = truncated = False
    while not (terminated or truncated or len(steps) == MAX_STEPS):
        action = policy(observation)
        following, reward, terminated, truncated, _ = environment.step(action)
        steps.append((observation, action, float(reward)))
        observation = following
    observations, actions, rewards = zip(*steps, strict=True)
    return {
        "observations": _stacked(observations),
        "actions": np.array(actions),
        "rewards": np.array(rewards),
        "terminals": bool(terminated),
    }


def _stacked(values: Sequence[Any]) -> Any:
    """Stack observations of a space into columns."""
    if isinstance(values[0], dict):
        return {name: _stacked([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], tuple):
        return {str(index): _stacked([value[index] for value in values]) for index in range(len(values[0]))}
    return np.stack(values)


def _columns(episode: Any, number: int, name: str) -> dict[str, Any]:
    """The arrays of an episode under their usual names, all of equal length."""
    place = f"episode {number} of {name}"
    if not isinstance(episode, Mapping):
        raise UserError(f"{place} is {type(episode).__name__}; give a dict of arrays, with {', '.join(_KEYS)}")
    found: dict[str, Any] = {}
    for key, names in _KEYS.items():
        present = next((other for other in names if other in episode), None)
        if present is None:
            raise UserError(f"{place} has no '{key}' (it has: {', '.join(map(str, episode)) or 'nothing'})")
        found[key] = (
            episode[present] if isinstance(episode[present], Mapping) else _array(episode[present], place, present)
        )
    rewards = found["rewards"]
    if rewards.ndim == 2 and rewards.shape[1] == 1:
        rewards = rewards[:, 0]
    if rewards.ndim != 1 or not len(rewards) or rewards.dtype.kind not in "biuf":
        raise UserError(f"{place}: 'rewards' have shape {rewards.shape} and type {rewards.dtype}; give (T,) numbers")
    finite = np.isfinite(_float32(rewards))
    if not finite.all():
        raise UserError(f"{place}: 'rewards' are not finite at step {int(np.argmin(finite))}")
    found["rewards"] = rewards.astype(np.float32)
    steps = len(rewards)
    if isinstance(found["actions"], Mapping) or found["actions"].dtype.kind not in "biuf":
        kind = "a dict" if isinstance(found["actions"], Mapping) else f"of type {found['actions'].dtype}"
        raise UserError(f"{place}: 'actions' are {kind}; give an array of numbers")
    if not found["actions"].ndim:
        raise UserError(f"{place}: 'actions' have no steps, 'rewards' have {steps}")
    if found["actions"].shape[:1] != (steps,):
        raise UserError(f"{place}: 'actions' have {len(found['actions'])} steps, 'rewards' {steps}")
    found["observations"] = _cut(found["observations"], steps, place, "observations")
    found["terminal"] = _is_terminal(_marks(episode, steps, place), steps, place)
    infos = episode.get("infos", {})
    if not isinstance(infos, Mapping):
        raise UserError(f"{place}: 'infos' are {type(infos).__name__}; give a dict of arrays")
    if wrong := [key for key in infos if not isinstance(key, str) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", key)]:
        raise UserError(f"{place}: 'infos' has the name {wrong[0]!r}; names are letters, digits, _, - and .")
    found["infos"] = {key: _array(values, place, f"{PREFIX}{key}") for key, values in infos.items()}
    for key, values in found["infos"].items():
        if values.shape[:1] != (steps,) or values.dtype.kind not in "biuf":
            raise UserError(
                f"{place}: '{PREFIX}{key}' have shape {values.shape} and type {values.dtype}; give numbers of {steps} "
                "steps"
            )
    return found


def _joined_infos(episodes: Sequence[Mapping[str, Any]], name: str) -> dict[str, np.ndarray]:
    """Privileged arrays of all episodes, concatenated. Raises UserError if they differ."""
    first = episodes[0]["infos"]
    for number, episode in enumerate(episodes):
        shapes = [{key: values.shape[1:] for key, values in infos.items()} for infos in (first, episode["infos"])]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{name}: 'infos' have shapes {shapes[0]} in episode 0, and {shapes[1]} in episode {number}"
            )
    return {key: np.concatenate([episode["infos"][key] for episode in episodes]) for key in first}


def _infos_of(data: Trajectories, start: int, stop: int) -> dict[str, np.ndarray]:
    """The privileged arrays of some steps, except those that describe the file itself."""
    names = [name for name in data.info_names() if PREFIX + name != FIRST_SEEN]
    return {name: data.column(PREFIX + name, start, stop) for name in names}


def _cut(values: Any, steps: int, place: str, key: str) -> Any:
    """T observations from T or T + 1."""
    if isinstance(values, Mapping):
        return {name: _cut(column, steps, place, f"{key}/{name}") for name, column in values.items()}
    values = _array(values, place, key)
    if values.ndim == 0 or len(values) not in (steps, steps + 1):
        raise UserError(f"{place}: '{key}' have {len(values) if values.ndim else 'no'} steps, 'rewards' {steps}")
    if values.dtype.kind not in "biuf" or not np.isfinite(_float32(values)).all():
        raise UserError(f"{place}: '{key}' of type {values.dtype} are not finite numbers")
    return values[:steps]


def _is_terminal(marks: Mapping[str, np.ndarray], steps: int, place: str) -> bool:
    """Whether an episode ended in a terminal state; it did if it has no marks. Raises UserError for an earlier end."""
    try:
        ends = within_episode(marks, steps)
    except UnclearEnds as unclear:
        raise UserError(f"{place} {unclear}") from None
    if can_mark_every_end(marks):
        return bool(ends.terminal[-1])
    return not any(values[-1] for values in marks.values())  # timeouts, if anything


def _array(values: Any, place: str, key: str) -> np.ndarray:
    """Values as an array. Raises UserError for lists of unequal length."""
    try:
        return np.asarray(values)
    except ValueError:
        raise UserError(f"{place}: '{key}' are not an array: the parts differ in shape") from None


def _float32(values: np.ndarray) -> np.ndarray:
    """Numbers as float32; uint8 is kept."""
    with np.errstate(over="ignore"):
        return values if values.dtype.kind in "biu" else values.astype(np.float32, copy=False)


def _infer_spaces(episodes: Sequence[Mapping[str, Any]], name: str) -> tuple[spaces.Space, spaces.Space]:
    """Infer the spaces of data without an environment."""
    first = episodes[0]["observations"]
    actions = [episode["actions"] for episode in episodes]
    kinds = {(values.dtype.kind in "iub", values.shape[1:]) for values in actions}
    if len(kinds) > 1:
        raise UserError(f"{name}: 'actions' differ in kind or shape between episodes: {sorted(map(str, kinds))}")
    ((integers, shape),) = kinds
    everything = np.concatenate([values.reshape(len(values), -1) for values in actions])
    if integers:
        low = everything.min()
        if low < 0:
            raise UserError(f"{name}: 'actions' are integers down to {low}; they must count from 0")
        if (largest := int(everything.max())) >= _MAX_ACTIONS:
            raise UserError(
                f"{name}: 'actions' go up to {largest}, but each number up to it would have an output of its own; "
                f"number the actions from 0, below {_MAX_ACTIONS}"
            )
        most = everything.max(axis=0).astype(np.int64) + 1
        single = shape in ((), (1,))
        return _space_of(first), spaces.Discrete(int(most[0])) if single else spaces.MultiDiscrete(most)
    if not np.isfinite(everything).all():
        raise UserError(f"{name}: 'actions' are not finite")
    bounds = np.maximum(1.0, np.abs(everything).max(axis=0)).astype(np.float32).reshape(shape)
    return _space_of(first), spaces.Box(-bounds, bounds, dtype=np.float32)


def _space_of(values: Any) -> spaces.Space:
    if isinstance(values, Mapping):
        return spaces.Dict({name: _space_of(column) for name, column in values.items()})
    if values.dtype == np.uint8 and values.ndim == 4:
        return spaces.Box(0, 255, values.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, values.shape[1:], np.float32)


def _unit(actions: np.ndarray) -> bool:
    """Whether continuous actions lie in [-1, 1]."""
    return actions.dtype.kind == "f" and actions.ndim == 2 and bool((np.abs(actions) <= 1).all())


def _encoded(
    episode: Mapping[str, Any], observations: Observations, actions: Actions, number: int, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode observations, actions and rewards of an episode for the model."""
    place = f"episode {number} of {name}"
    if not observations.is_encoded(episode["observations"]):
        _check_shape(episode["observations"], observations.space, f"{place}: 'observations'")
    try:
        seen = observations.encode_many(episode["observations"])
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{place}: 'observations' do not fit {observations.space}: {error}") from None
    if observations.is_image and seen.dtype != np.uint8:
        raise UserError(f"{place}: 'observations' have type {seen.dtype}; images of {observations.space} are uint8")
    try:
        return seen, actions.encode(episode["actions"]), episode["rewards"]
    except ValueError as error:
        raise UserError(f"{place}: 'actions' do not fit {actions.space}: {error}") from None


def _check_shape(values: Any, space: spaces.Space, what: str) -> None:
    """Raise a UserError if an array's shape differs from the space's."""
    if isinstance(space, spaces.Dict):
        parts = set(values) if isinstance(values, Mapping) else set()
        if parts != set(space.spaces):
            raise UserError(
                f"{what} have parts {sorted(parts) or 'none'}, but the observation space has {sorted(space.spaces)}"
            )
        for name, part in space.spaces.items():
            _check_shape(values[name], part, f"{what[:-1]}/{name}'")
    elif not isinstance(values, Mapping) and isinstance(space, spaces.Box) and values.shape[1:] != space.shape:
        raise UserError(f"{what} have shape {values.shape[1:]}, but the observation space has {space.shape}")
    elif not isinstance(values, Mapping) and isinstance(space, spaces.Discrete):
        inside = (values >= space.start) & (values < space.start + space.n) & (values == np.round(values))
        if not inside.all():
            raise UserError(f"{what} contain {values[~inside].flat[0]}, which is not in {space}")
