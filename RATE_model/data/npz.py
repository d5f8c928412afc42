"""Folders of ``.npz`` files with one or several episodes each, converted once to a trajectory file.

The published collectors store their data this way. A file has these arrays, under configurable names (`NpzKeys`):

    observations  (T, ...)  images: uint8, or floating point in [0, 1], divided by 255
    actions       (T,)      integers
    rewards       (T,)
    dones         (T,)      nonzero on the last step of an episode, or any other end mark (`RATE_model.data.ends`)

Dreamer-style collectors store rows instead of steps (`NpzKeys.rows`). In episodes, a row has an image, the action that
*led* to it and the reward that came with it (arrivals); the action taken on an image and its outcome are in the next
row. In replay chunks a row has the action taken on the image, and the reward that came with the image (replay):

    row           0         1         2     ...   T                step        0       1      ...   T - 1
    images        o0        o1        o2          oT               observation o0      o1           o(T-1)
    arrivals      nothing   a0        a1          a(T-1)     ->    action      a0      a1           a(T-1)
    replay        a0        a1        a2          nothing          reward      r0      r1           r(T-1)
    rewards       0         r0        r1          r(T-1)

Files with several episodes may start and end in the middle of one. The rest of an episode that started in an earlier
file has correct returns-to-go; an episode without an end does not, and is dropped. The end of a file ends its only
episode, unless its marks or the next file show that the episode continues.

Files are read in the order of the numbers in their names. Damaged or unrecognised files are skipped with a reason; the
rest is converted, and the conversion is kept until the folder changes.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from RATE_model.data.ends import Ends, UnclearEnds, can_mark_every_end, find_ends, kind_of, one_column, possible_marks
from RATE_model.data.hdf5 import attributes_of
from RATE_model.data.trajectories import Learn
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError, error_reason
from RATE_model.system.locks import ensure, exclusive
from RATE_model.system.progress import progress_bar

PATTERN = "train_data_*.npz"
REASONS_SHOWN = 10
DIGEST = "source_digest"  # attribute of a converted file
_VERSION = 3  # of the conversion; files of other versions are converted again
_GREY = 0.1  # largest deviation of a pixel from an integer grey level, out of 255; half precision needs 0.06


# The content of a row: see `NpzKeys.rows`.
Rows = Literal["steps", "arrivals", "replay", "auto"]


@dataclass(frozen=True)
class NpzKeys:
    """Names of the arrays in a file, and how they are arranged."""

    observations: str | tuple[str, ...] = "obs"  # of several names, the first that exists
    actions: str = "action"
    rewards: str = "reward"
    marked: bool = True  # a file must mark ends; if False, an unmarked file is one truncated episode
    continued: bool = False  # use the rest of an episode that starts in another file
    # steps: an observation, the action taken on it, its reward; an extra last observation is dropped.
    # arrivals: the action that led to the observation, and its reward; T + 1 rows are T steps.
    # replay: the action taken on the observation, and the reward that came with it; T + 1 rows are T steps.
    # auto: arrivals if the first row's action is not an action (all zeros); other files are refused.
    rows: Rows = "steps"
    one_hot: bool = False  # actions are (T, num_actions), one 1 in each row
    channels_last: bool = False  # images are (T, H, W, C)
    time_last: tuple[str, ...] = ()  # observation arrays whose last axis is time


@dataclass(frozen=True)
class _Layout:
    """The required content of a file."""

    keys: NpzKeys
    observation_shape: tuple[int, ...]
    num_actions: int
    infos: tuple[str, ...]


@dataclass(frozen=True)
class _Episode:
    observations: np.ndarray  # (T, ...) uint8
    actions: np.ndarray  # (T,)
    rewards: np.ndarray  # (T,)
    terminal: bool
    infos: dict[str, np.ndarray]  # (T, ...)


@dataclass(frozen=True)
class _Contents:
    """The content of a file.

    Attributes:
        episodes: those that end in it.
        last: the episode at its end, which may continue in the next file.
        alone: whether it is the only one in the file.
        begins: whether an episode starts with the file; None: unknown.
        left_out: whether the file has an episode that is known to continue in another file.
        unknown: names of arrays that may mark ends but are not recognised.
    """

    episodes: list[_Episode]
    last: _Episode | None
    alone: bool
    begins: bool | None
    left_out: bool
    unknown: list[str]

    def ended(self, following: _Contents | None) -> bool:
        """Whether ``last`` ends with the file, judging by the next file; None: there is none."""
        begins = None if following is None else following.begins
        return self.alone if begins is None else begins


class Refused(Exception):
    """Why a file cannot be used, worded as the rest of a sentence that starts with its name."""


REWARDS_WITH_IMAGES = "rewards came with the images of their rows"
UNKNOWN_ALIGNMENT = "does not show whether an action was taken on the image of its row or led to it"


def read_npz(
    path: Path, choose: Callable[[Sequence[str]], Iterable[str]] = lambda names: names
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an .npz file, and the names of all arrays in it. Nothing is unpickled.

    Args:
        path: the file.
        choose: picks the names to load from all names; by default all.

    Raises:
        Refused: the file is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in choose(file.files)}, list(file.files)
    except Refused:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise Refused(f"is damaged or not an .npz file ({error_reason(error) or type(error).__name__})") from error


def find_npz(folder: str | Path, pattern: str = PATTERN) -> list[Path]:
    """The matching files of a folder, sorted by the numbers in their names.

    Directories are skipped: a published collector created a directory, ``train_data_7.npz``, for every file, which it
    then saved beside it as ``train_data_7.npztrain_data_7.npz``.
    """

    def natural(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    return sorted((path for path in Path(folder).glob(pattern) if path.is_file()), key=natural)


def resolve_data(
    source: Path, target: Path, *, pattern: str = PATTERN, named: str = "--data_path", **conversion: Any
) -> Path:
    """The given trajectory file itself, or the conversion of the given folder.

    Args:
        source: the file, or the folder of .npz files.
        target: path of a folder's conversion; see `conversion_path`.
        pattern: glob pattern of the files in a folder.
        named: the flag or setting that names the source, for messages.
        conversion: further arguments of `import_npz`.

    Raises:
        UserError: there is no such file or folder, it has no data, or see `import_npz`.
    """
    if source.is_dir():
        if not find_npz(source, pattern):
            own = sorted(source.glob("*.h5"))
            advice = f" To train on '{own[0].name}' in it, name that file." if own else ""
            raise UserError(f"{named} '{source}': this folder has no {pattern}.{advice}")
        return import_npz(source, target, pattern=pattern, **conversion)
    if not source.is_file():
        raise UserError(f"{named} '{source}': does not exist")
    if source.suffix == ".npz":
        raise UserError(f"{named} '{source}': one episode is not a dataset; give the folder of the {pattern}")
    return source


def require_expert_labels(source: Path | None, learn: Learn, *, named: str = "--data_path") -> None:
    """Raise `UserError` if the given folder cannot contain the training targets.

    Called before the slow conversion. ``source`` is None if no data is given.
    """
    if learn == "expert" and source is not None and source.is_dir():
        raise UserError(
            f"--learn expert: the files in {named} '{source}' have only the recorded actions, no expert's; "
            "use --learn recorded"
        )


def conversion_path(source: Path, directory: Path, prefix: str) -> Path:
    """The path of a folder's conversion in a directory; unique per folder."""
    folder = source.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return directory / f"{prefix}_imported_{folder.name}_{digest}.h5"


def import_npz(
    folder: str | Path,
    target: str | Path,
    *,
    observation_shape: Sequence[int],
    num_actions: int,
    pattern: str = PATTERN,
    keys: NpzKeys | None = None,
    infos: Sequence[str] = (),
    index_frames: bool = False,
    overwrite: bool = False,
    attributes: Mapping[str, Any],
) -> Path:
    """Convert a folder, or return the existing conversion if nothing in the folder has changed.

    The converted file has these attributes besides ``attributes``: ``source`` (the folder's name), ``source_files``
    (their number) and ``source_digest`` (of the files' names, sizes and times, and of how they are read). Only one
    episode is in memory at a time. Skipped files are printed.

    Args:
        folder: the folder of the files.
        target: the trajectory file to make. An existing file that is not a conversion is not touched.
        observation_shape: shape of one stored image; see `NpzKeys.channels_last`.
        num_actions: actions are 0 to num_actions - 1.
        pattern: glob pattern of the files.
        keys: names of the arrays; None: the defaults of `NpzKeys`.
        infos: further arrays to keep under ``infos/``: (T, ...), or a single number, which is repeated at every step.
        index_frames: see `TrajectoryWriter`.
        overwrite: convert in any case, replacing an existing file.
        attributes: what is known about how the data was made.

    Raises:
        UserError: there is no such file, all files are unusable, or the target cannot be written.
    """
    folder, target = Path(folder), Path(target)
    layout = _Layout(keys or NpzKeys(), tuple(observation_shape), num_actions, tuple(infos))
    files = find_npz(folder, pattern)
    if not files:
        raise UserError(f"'{folder}' has no file {pattern}" + ("" if folder.is_dir() else ": it is not a folder"))
    digest = _digest(files, layout, index_frames)
    described = {**attributes, "source": folder.resolve().name, "source_files": len(files), DIGEST: digest}

    def is_converted(path: Path) -> bool:
        return path.exists() and _digest_of(path, folder) == digest

    def convert() -> None:
        _convert(files, folder, pattern, target, layout, index_frames, described)

    waiting = f"another process is converting '{folder}'; waiting for it"
    if overwrite:
        with exclusive(target, waiting) as waited:
            if not (waited and is_converted(target)):
                convert()
    else:
        ensure(target, convert, is_good=is_converted, waiting=waiting)
    return target


def _convert(
    files: Sequence[Path],
    folder: Path,
    pattern: str,
    target: Path,
    layout: _Layout,
    index_frames: bool,
    attributes: Mapping[str, Any],
) -> None:
    """Write all usable files into one, and print a summary. Raises UserError if none is usable."""
    with TrajectoryWriter(
        target,
        observation_shape=layout.observation_shape,
        observation_dtype="uint8",
        action_dtype=np.min_scalar_type(layout.num_actions - 1),
        index_frames=index_frames,
        attributes=attributes,
    ) as writer:
        counts, refused = _add_episodes(writer, files, layout)
        if len(refused) == len(files):
            raise UserError(f"'{folder}': none of {len(files)} files {pattern} can be used: {_reasons(refused)}.")
        if not counts["episodes"]:
            raise UserError(f"'{folder}': no episode ends in any of {len(files)} files {pattern}.")
    done = f"'{folder}': converted {counts.pop('episodes')} episodes to '{target}'"
    if without_end := counts.pop("without an end", 0):
        done += f"; dropped {without_end} without an end"
    for name, number in counts.items():
        done += f"; ignored '{name}' in {number} files, which may mark ends of episodes but is not recognised"
    print(f"{done}; skipped {len(refused)} of {len(files)} files: {_reasons(refused)}" if refused else done, flush=True)


def _add_episodes(
    writer: TrajectoryWriter, files: Sequence[Path], layout: _Layout
) -> tuple[Counter[str], dict[Path, str]]:
    """Write the episodes of all usable files.

    Returns:
        Counts of "episodes", of those "without an end", and of files by unrecognised names in them; and the reason for
        every skipped file.
    """
    refused: dict[Path, str] = {}
    counts: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}  # of one step's infos, from the first file
    before: _Contents | None = None

    def add(episode: _Episode) -> None:
        arrays = (episode.observations, episode.actions, episode.rewards)
        writer.add_episode(*arrays, terminal=episode.terminal, infos=episode.infos)
        counts["episodes"] += 1

    def settle(contents: _Contents | None, following: _Contents | None) -> None:
        if contents is not None and contents.last is not None:
            if contents.ended(following):
                add(contents.last)
            else:
                counts["without an end"] += 1

    for path in progress_bar(iterable=files, desc=f"converting {files[0].parent.name}", unit="file"):
        try:
            contents = _read(path, layout, shapes)
        except Refused as reason:
            refused[path] = str(reason)
            continue
        settle(before, contents)
        for episode in contents.episodes:
            add(episode)
        counts["without an end"] += contents.left_out
        counts.update(contents.unknown)
        before = contents
    settle(before, None)
    return counts, refused


def _reasons(refused: Mapping[Path, str]) -> str:
    """Why files were skipped: every reason, the most frequent first, with an example and a count."""
    counts = Counter(refused.values())
    examples = {reason: path.name for path, reason in reversed(list(refused.items()))}  # the first file of each
    shown = counts.most_common(REASONS_SHOWN)
    said = [f"{examples[reason]} {reason}" + (f" (and {count - 1} more)" * (count > 1)) for reason, count in shown]
    rest = len(refused) - sum(count for _, count in shown)
    return "; ".join(said) + (f"; {rest} more for other reasons" if rest else "")


def _digest(files: Sequence[Path], layout: _Layout, index_frames: bool) -> str:
    """A digest of the files' names, sizes and times, and of how they are read."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((_VERSION, asdict(layout), index_frames, stats)).encode()).hexdigest()


def _digest_of(target: Path, folder: Path) -> str:
    """The digest in a converted file. Raises UserError if the file is not a conversion."""
    if digest := attributes_of(target).get(DIGEST):
        return digest
    raise UserError(f"'{target}' exists and is not a conversion of '{folder}'; move it, or name another file")


def _read(path: Path, layout: _Layout, shapes: dict[str, tuple[int, ...]]) -> _Contents:
    """Read a file. Raises `Refused`."""
    keys = layout.keys
    observed = (keys.observations,) if isinstance(keys.observations, str) else keys.observations
    others = [keys.actions, keys.rewards, *layout.infos]
    arrays, names = _arrays(path, [observed, *((name,) for name in others)])
    (name,) = (name for name in observed if name in arrays)
    observations, actions, rewards = arrays[name], *(one_column(arrays[key]) for key in (keys.actions, keys.rewards))
    marks = {mark: arrays[mark] for mark in names if kind_of(mark)}
    if keys.marked and not can_mark_every_end(marks):
        raise Refused(f"has no 'done' and no other array that marks ends (available: {', '.join(sorted(names))})")
    if rewards.ndim != 1 or len(rewards) == 0:
        raise Refused(f"has '{keys.rewards}' of shape {rewards.shape}; expected one number per step")
    rows = len(rewards)
    if name in keys.time_last:
        observations = np.moveaxis(observations, -1, 0)
    if keys.channels_last and observations.ndim == 4:
        observations = np.moveaxis(observations, -1, 1)
    if observations.shape[1:] != layout.observation_shape or len(observations) - rows not in (0, 1):
        expected, found = (rows, *layout.observation_shape), observations.shape
        if keys.channels_last and len(expected) == len(found) == 4:
            expected, found = (tuple(np.array(shape)[[0, 2, 3, 1]].tolist()) for shape in (expected, found))
        raise Refused(f"has '{name}' of shape {found}; expected {expected}")
    try:
        ends = find_ends(marks, rows, one_step=False)
    except UnclearEnds as unclear:
        raise Refused(str(unclear)) from None
    stops = np.append(np.flatnonzero(ends.last[:-1]) + 1, rows)
    starts = np.append(0, stops[:-1])
    pieces = _steps(len(observations), actions, rewards, starts, stops, ends, layout)
    with np.errstate(over="ignore"):
        rewards = rewards.astype(np.float32)
    if not np.isfinite(rewards).all():
        raise Refused(f"has a NaN or infinite value in '{keys.rewards}'")
    infos = {name: _info(arrays[name], rows, name, len(stops)) for name in layout.infos}
    for info, values in infos.items():
        if shapes.setdefault(info, values.shape[1:]) != values.shape[1:]:
            raise Refused(f"has '{info}' of shape {values.shape[1:]} per step; earlier files have {shapes[info]}")
    episodes = [
        _Episode(
            _images(observations[seen], name),
            taken,
            rewards[earned],
            bool(ends.terminal[stop - 1]),
            {info: values[seen] for info, values in infos.items()},
        )
        for stop, (seen, taken, earned) in zip(stops, pieces, strict=True)
    ]
    last = None if ends.last[-1] else episodes.pop()
    if ends.begins is False and episodes and not keys.continued:
        episodes.pop(0)
    whole = [episode for episode in episodes if len(episode.rewards)]
    return _Contents(
        whole,
        None if ends.open or (last is not None and not len(last.rewards)) else last,
        alone=len(stops) == 1,
        begins=ends.begins,
        left_out=ends.open,
        unknown=possible_marks(names),
    )


def _steps(
    images: int,
    actions: np.ndarray,
    rewards: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    ends: Ends,
    layout: _Layout,
) -> list[tuple[slice, np.ndarray, slice]]:
    """For each episode: the rows of its observations, its actions (T,), and the rows of its rewards."""
    keys, rows = layout.keys, len(rewards)
    first, last = starts[1 if ends.begins is False else 0 :], stops - 1
    idle = np.zeros(rows, bool)
    if keys.one_hot and len(actions) == rows:
        idle = (actions == 0).reshape(rows, -1).all(axis=1)
    kind = keys.rows
    if kind == "auto" and (images > rows or (first.size and idle[first].all())):
        kind = "steps" if images > rows else "arrivals"
    if keys.one_hot:
        idle_rows = {"arrivals": first, "replay": last}.get(kind, np.append(first, last))
        actions = _from_one_hot(actions, rows, layout, idle_rows)
    elif actions.shape != rewards.shape or actions.dtype.kind not in "iu":
        raise Refused(f"has '{keys.actions}' {actions.dtype} {actions.shape}; expected {rows} integers")
    if kind == "auto":
        raise Refused(UNKNOWN_ALIGNMENT)
    if kind != "steps" and (images != rows or rows < 2):
        raise Refused(f"has {images} images and {rows} rewards; rows of {kind} need equal numbers, at least 2")
    if actions.min() < 0 or actions.max() >= layout.num_actions:
        bounds = f"{actions.min()} to {actions.max()}; allowed is 0 to {layout.num_actions - 1}"
        raise Refused(f"has actions from {bounds}")
    pieces = []
    for start, stop in zip(starts, stops, strict=True):
        if kind == "arrivals":
            pieces.append((slice(start, stop - 1), actions[start + 1 : stop], slice(start + 1, stop)))
        elif kind == "replay":
            pieces.append((slice(start, stop - 1), actions[start : stop - 1], slice(start + 1, stop)))
        elif not idle[stop - 1]:
            pieces.append((slice(start, stop), actions[start:stop], slice(start, stop)))
        elif rewards[stop - 1]:
            raise Refused(
                f"has a reward in row {stop - 1} of {rows}, in which no action was taken: {REWARDS_WITH_IMAGES}"
            )
        else:  # a last observation without an action
            pieces.append((slice(start, stop - 1), actions[start : stop - 1], slice(start, stop - 1)))
    return pieces


def _from_one_hot(actions: np.ndarray, rows: int, layout: _Layout, idle: np.ndarray) -> np.ndarray:
    """Action numbers (T,) int64 from one-hot rows; rows marked ``idle`` may be all zeros and become 0."""
    keys, shape = layout.keys, (rows, layout.num_actions)
    if actions.shape != shape:
        raise Refused(f"has '{keys.actions}' of shape {actions.shape}; expected {shape}, one-hot")
    hot = actions == 1
    good = (hot.sum(1) == 1) & ((actions == 0).sum(1) == layout.num_actions - 1)
    good[idle] |= ~actions[idle].any(axis=1)
    if not good.all():
        raise Refused(f"has '{keys.actions}' at row {int(np.argmin(good))} of {rows} that is not one-hot")
    return hot.argmax(1)


def _arrays(path: Path, wanted: Sequence[Sequence[str]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Load the requested arrays, each by the first of its names that exists, all end marks, and the names in the file.

    The arrays are numeric. Nothing is unpickled.
    """

    def choose(held: Sequence[str]) -> list[str]:
        if missing := [names for names in wanted if not any(name in held for name in names)]:
            found = ", ".join(sorted(held)) or "nothing"
            listed = ", ".join(" or ".join(map(repr, names)) for names in missing)
            raise Refused(f"has no {listed} (available: {found})")
        return [next(name for name in names if name in held) for names in wanted] + list(filter(kind_of, held))

    arrays, held = read_npz(path, choose)
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise Refused(f"has '{name}' of type {values.dtype}; expected numbers")
    return arrays, held


def _images(values: np.ndarray, name: str) -> np.ndarray:
    """Convert images to uint8 without loss."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    largest = 1 if values.dtype.kind == "f" else 255
    if not (low >= 0 and high <= largest):  # also refuses NaN
        allowed = "floating-point images must be in [0, 1]" if largest == 1 else "allowed is 0 to 255"
        raise Refused(f"has '{name}' from {low} to {high}; {allowed}")
    levels = values.astype(np.promote_types(values.dtype, np.float32)) * (255 if largest == 1 else 1)
    whole = np.rint(levels)
    if np.abs(levels - whole).max() > _GREY:
        raise Refused(f"has '{name}' with values between the 256 grey levels: not an image divided by 255")
    return whole.astype(np.uint8)


def _info(values: np.ndarray, steps: int, name: str, episodes: int) -> np.ndarray:
    """A further array as (T, ...), int64 or float32, from a file with this many episodes."""
    values = values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
    if values.size == 1 and values.ndim < 2 and values.shape != (steps,):
        if episodes > 1:
            raise Refused(f"has one '{name}' for {episodes} episodes; expected one per step")
        return np.full(steps, values.item(), dtype=values.dtype)
    if values.ndim == 0 or len(values) != steps:
        raise Refused(f"has '{name}' of shape {values.shape}; expected {steps} steps or a single number")
    return values
