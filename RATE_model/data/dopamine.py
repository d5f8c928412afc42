"""DQN-replay format: read and write dopamine's replay buffers on disk (Castro et al. 2018, arXiv 1812.06110).

    {data}/{Game}/1/replay_logs/
        $store$_observation_ckpt.N.gz   (n, 84, 84) uint8, single frames
        $store$_action_ckpt.N.gz        (n,) int32
        $store$_reward_ckpt.N.gz        (n,) float32
        $store$_terminal_ckpt.N.gz      (n,) uint8, 1 on the last transition of an episode
        add_count_ckpt.N.gz             () int64, transitions ever added to the buffer
        invalid_range_ckpt.N.gz         (5,) int64, transitions around the cursor that may not be sampled

Every file is a gzip stream of a `numpy.save` array. The public buffers hold a million transitions each, N = 0 to 49.
Each episode is preceded by three zero transitions (for a stack of four frames), which are padding and are dropped here.
The first transitions of a buffer may be the rest of an episode from the previous buffer, and the last ones may start an
episode that ends in the next: the former are used, the latter are not, since their return is unknown.

A buffer is a ring. Its cursor, add_count modulo its capacity, is the slot to be written next:

    add_count <  capacity      o0 o1 o2 o3 -- --       slots from the cursor on are uninitialised
                                           ^
    add_count >= capacity      o6 o7 o2 o3 o4 o5       the oldest transition is at the cursor: order is o2, ..., o7
                                     ^

The public buffers were saved one transition before they were full: the cursor is at their last slot, which is dropped.
An episode that was cut off has no terminal. Newer versions of dopamine list its end in episode_end_indices_ckpt.N.gz;
otherwise it is recognised by the padding of the next episode.

The training data is selected as in the published code (`Selection`), validated, and converted once to the project's own
layout (`convert`). Only the selected part is decompressed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.cli.limits import at_least, at_most
from RATE_model.data.hdf5 import attributes_of
from RATE_model.data.pickles import ArrayUnpickler
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.atomic import sync_directory
from RATE_model.system.locks import ensure, temporary

STACK = 4  # frames per observation
PADDING = STACK - 1  # zero transitions before every episode
FRAME_SHAPE = (84, 84)
CAPACITY = 1_000_000  # transitions per public buffer
PUBLISHED_BUFFERS = 50
PUBLISHED_TRANSITIONS = 500_000
SOURCE_DIGEST = "source_digest"  # attribute of a converted file
CLIPPED = "rewards_look_clipped"  # attribute of a converted file
# The stores, and the kind of number in each: dopamine has changed dtypes within a kind.
_STORES = {"observation": "u", "action": "iu", "reward": "f", "terminal": "biu"}
_KINDS = {"action": "an integer", "reward": "a floating-point number", "terminal": "an integer or a boolean"}
_VERSION = 2  # of the conversion; files of other versions are converted again
_FRAME_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1]
_BLOCK = 2000  # frames in memory at a time


@dataclass(frozen=True)
class Selection:
    """Which transitions of a DQN-replay copy are trained on."""

    # DQN-replay data: buffers that are drawn from, 0 to this number less one
    buffers: int = PUBLISHED_BUFFERS
    # DQN-replay data: draw until there are this many transitions; none = 500,000. Our own data: make this many where it
    # is missing; none = as many as its script makes
    transitions: int | None = None
    # DQN-replay data: whole episodes of a draw, in a row, after those drawn from that buffer before
    trajectories_per_buffer: int = 10
    # DQN-replay data: only the first this many transitions of each buffer are looked at
    buffer_transitions: int = 100_000
    # DQN-replay data: seed of the draws
    data_seed: int = 123

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        counts = ("buffers", "transitions", "trajectories_per_buffer", "buffer_transitions")
        at_least(1, **{name: getattr(self, name) for name in counts})
        at_least(0, data_seed=self.data_seed)
        at_most(CAPACITY, buffer_transitions=self.buffer_transitions)
        at_most(CAPACITY * PUBLISHED_BUFFERS, transitions=self.transitions)


@dataclass(frozen=True, eq=False)
class Buffer:
    """The small stores of one buffer, validated.

    Attributes:
        folder, number: where its files are.
        slots: where the transitions are, (first, last + 1) of each contiguous stretch, in chronological order.
        starts, lengths: (E,) int64, first transition and number of transitions of every finished episode, including the
            padding before it, which only the frames (not read yet) reveal.
        terminal: (E,) bool, whether it ended in a terminal state.
        actions: (n,) int64; rewards: (n,) float32.
        whole: whether these are all finished episodes of the buffer.
    """

    folder: Path
    number: int
    slots: tuple[tuple[int, int], ...]
    starts: np.ndarray
    lengths: np.ndarray
    terminal: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    whole: bool

    def episodes(self, count: int) -> Iterator[Episode]:
        """The first `count` episodes without padding; nothing after them is decompressed.

        Raises:
            UserError: the observation file is damaged.
        """
        path = store_path(self.folder, "observation", self.number)
        chosen = (column[:count] for column in (self.starts, self.lengths, self.terminal))
        with contextlib.closing(_FrameReader(path, self.slots)) as reader:
            for start, length, terminal in zip(*chosen, strict=True):
                frames = reader.read(int(length))
                actions, rewards = (column[start : start + length] for column in (self.actions, self.rewards))
                pieces = _without_padding(frames, actions, rewards)
                for number, (rows, padding) in enumerate(pieces, 1):
                    ended = number == len(pieces)
                    yield Episode(frames[rows], actions[rows], rewards[rows], bool(terminal) and ended, ended, padding)
            if self.whole and count == len(self.lengths):
                reader.finish()


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode of a buffer.

    Attributes:
        frames: (T, 84, 84) uint8; actions: (T,); rewards: (T,).
        terminal: whether it ended in a terminal state.
        marked: whether its end was marked; otherwise it was inferred from the padding of the next episode.
        padding: zero transitions before it, dropped.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    marked: bool
    padding: int


def store_path(folder: Path, name: str, number: int) -> Path:
    """The file of one store of a buffer."""
    return folder / f"$store$_{name}_ckpt.{number}.gz"


def find_replay_logs(place: Path, game: str) -> Path | None:
    """The folder of a game's buffers: `place` itself or {Game}/1/replay_logs below it; None if there are none."""
    for folder in (place, place / "replay_logs", place / "1" / "replay_logs", place / game / "1" / "replay_logs"):
        if folder.is_dir() and buffer_numbers(folder):
            return folder
    return None


def buffer_numbers(folder: Path) -> list[int]:
    """The numbers of all buffers with at least one file, ascending."""
    names = (path.name.removesuffix(".gz").rpartition("_ckpt.")[2] for path in folder.glob("$store$_*_ckpt.*.gz"))
    return sorted({int(name) for name in names if name.isdigit()})


def read_buffer(folder: Path, number: int, *, num_actions: int, limit: int = CAPACITY) -> Buffer:
    """Read a buffer without its frames.

    Args:
        folder: the folder of its files.
        number: N.
        num_actions: actions are 0 to num_actions - 1.
        limit: episodes that end after this many transitions are dropped.

    Raises:
        UserError: a store is missing, truncated, damaged or of the wrong kind; stores differ in length, or the order of
            transitions is unclear.
    """
    paths = {name: store_path(folder, name, number) for name in _STORES}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"buffer {number} in '{folder}' is incomplete: {', '.join(missing)} missing; copy the missing files, or "
            "move the other files of this buffer away"
        )
    lengths = {name: _check_header(path, name) for name, path in paths.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"buffer {number} in '{folder}' has stores of different lengths ({listed}); copy it again")
    slots = _in_order(folder, number, lengths["action"])
    rows = np.concatenate([np.arange(*stretch) for stretch in slots])  # slots in chronological order
    actions, rewards, terminals = (_read_numbers(paths[name])[rows] for name in ("action", "reward", "terminal"))
    if (bad := (actions < 0) | (actions >= num_actions)).any():
        where = int(np.argmax(bad))
        raise UserError(
            f"'{paths['action']}' has action {actions[where]} at transition {rows[where]}; allowed is 0 to "
            f"{num_actions - 1}. Does --game name the right game?"
        )
    if not (finite := np.isfinite(rewards)).all():
        where = rows[int(np.argmin(finite))]
        raise UserError(f"'{paths['reward']}' has a NaN or infinite reward at transition {where}")
    if (bad := (terminals != 0) & (terminals != 1)).any():
        where = int(np.argmax(bad))
        raise UserError(f"'{paths['terminal']}' has {terminals[where]} at transition {rows[where]}; expected 0 or 1")
    ends = (terminals != 0) | np.isin(rows, _listed_ends(folder, number))
    stops = np.flatnonzero(ends[:limit]) + 1
    starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
    columns = (terminals[stops - 1] != 0, actions.astype(np.int64), rewards.astype(np.float32))
    return Buffer(folder, number, slots, starts, stops - starts, *columns, whole=limit >= len(terminals))


def _in_order(folder: Path, number: int, capacity: int) -> tuple[tuple[int, int], ...]:
    """Contiguous stretches (first slot, last slot + 1) of written transitions, oldest first.

    Raises:
        UserError: `add_count` and `invalid_range` contradict each other or the stores, or the buffer is too short.
    """
    count, invalid = (_read_small(folder / f"{name}_ckpt.{number}.gz") for name in ("add_count", "invalid_range"))
    here = f"buffer {number} in '{folder}'"
    if count is not None:
        total = int(count.ravel()[0])
    elif invalid is not None and invalid.size > STACK:
        # It covers STACK slots from the cursor on, and before it one slot per step of an n-step return.
        cursor = int(invalid.ravel()[-STACK]) % capacity
        if 0 < cursor < capacity - STACK:
            raise UserError(f"{here} has no add_count, which gives the order of its transitions; copy it too")
        total = capacity + cursor
    else:
        print(f"note: {here} has no add_count: assuming that it is full and its first slot is the oldest", flush=True)
        total = capacity
    cursor = total % capacity
    if total and invalid is not None and (invalid.max() >= capacity or cursor not in invalid):
        raise UserError(
            f"{here}: add_count {total} and invalid_range {invalid.astype(int).tolist()} do not match stores of "
            f"{capacity} transitions: the files are truncated or from different buffers; copy them again"
        )
    if total < capacity:
        return ((0, total),)
    if cursor and capacity - cursor <= STACK:  # the part older than slot 0 is too short for one stack of frames
        return ((0, cursor),)
    return ((cursor, capacity), (0, cursor)) if cursor else ((0, capacity),)


def _listed_ends(folder: Path, number: int) -> np.ndarray:
    """Slots where episodes end, as listed by newer versions of dopamine; otherwise empty."""
    listed = _read_small(folder / f"episode_end_indices_ckpt.{number}.gz")
    return np.empty(0, int) if listed is None else listed


def _read_small(path: Path) -> np.ndarray | None:
    """A small array written by `numpy.save` or pickle; None if there is no such file."""
    if not path.is_file():
        return None
    with _named_damage(path), gzip.open(path, "rb") as stream:
        content = io.BytesIO(stream.read())
        is_array = content.getvalue()[:6] == b"\x93NUMPY"
        values = np.load(content, allow_pickle=False) if is_array else ArrayUnpickler(content).load()
        values = np.asarray(sorted(values) if isinstance(values, set) else values)
    if values.dtype.kind not in "iuf" and values.size:
        raise UserError(f"'{path}' contains {values.dtype}; expected integers")
    return values


def _without_padding(frames: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> list[tuple[slice, int]]:
    """The rows of each episode up to an end mark, and the number of padding transitions dropped before it.

    Padding is a transition in which everything is zero: at most three at the beginning, where the buffer may begin too,
    and exactly three where an episode was cut off and the next one begins.
    """
    zero = ~(frames.any(axis=(1, 2)) | (actions != 0) | (rewards != 0))
    black = ~frames.any(axis=(1, 2))
    leading = int(np.argmin(zero[:PADDING])) if not zero[:PADDING].all() else min(PADDING, len(zero))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], black, [False]])))
    cuts = [int(a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a == PADDING and zero[a:b].all()]
    cuts = [cut for cut in cuts if leading < cut < len(frames) - PADDING]
    starts, stops = [leading, *(cut + PADDING for cut in cuts)], [*cuts, len(frames)]
    skipped = [leading, *(PADDING for _ in cuts)]
    return [(slice(*rows), left) for *rows, left in zip(starts, stops, skipped, strict=True)]


def select(folder: Path, selection: Selection, *, num_actions: int) -> list[tuple[Buffer, int]]:
    """Select the episodes to train on: buffers by number, and how many of the first episodes of each.

    A buffer is drawn uniformly, and the next `trajectories_per_buffer` of its episodes are taken, until there are
    enough transitions or no buffer has an episode left.

    Raises:
        UserError: see `read_buffer`; or there is no buffer below `selection.buffers`, or no whole episode in any.
    """
    numbers = buffer_numbers(folder)
    open_ = [number for number in numbers if number < selection.buffers]
    if not open_:
        raise UserError(f"--buffers {selection.buffers}: '{folder}' only has buffers {numbers[0]} to {numbers[-1]}")
    wanted = PUBLISHED_TRANSITIONS if selection.transitions is None else selection.transitions
    generator = np.random.default_rng(selection.data_seed)
    drawn: dict[int, Buffer] = {}
    taken: dict[int, int] = {}
    total = 0
    while open_ and total < wanted:
        number = open_[generator.integers(len(open_))]
        if number not in drawn:
            drawn[number] = read_buffer(folder, number, num_actions=num_actions, limit=selection.buffer_transitions)
        buffer, begin = drawn[number], taken.get(number, 0)
        end = min(begin + selection.trajectories_per_buffer, len(buffer.lengths))
        # The last draw takes only as many episodes as are needed.
        enough = begin + 1 + int(np.searchsorted(np.cumsum(buffer.lengths[begin:end]), wanted - total))
        end = min(end, enough)
        total += int(buffer.lengths[begin:end].sum())
        taken[number] = end
        if end == len(buffer.lengths):
            open_.remove(number)
    if total == 0:
        raise UserError(
            f"'{folder}': no episode ends within the first {selection.buffer_transitions} transitions of a buffer; "
            "raise --buffer_transitions"
        )
    return [(drawn[number], taken[number]) for number in sorted(taken) if taken[number]]


def conversion_path(folder: Path, selection: Selection, game: str, directory: Path) -> Path:
    """The path of a selection's conversion in a directory; unique per folder and selection."""
    digest = hashlib.sha256(repr((str(folder.resolve()), asdict(selection))).encode()).hexdigest()[:8]
    return directory / f"{game.lower()}_dqn_replay_{digest}.h5"


def convert(folder: Path, target: Path, selection: Selection, *, game: str, num_actions: int) -> Path:
    """Convert a selection to a trajectory file of single frames (1, 84, 84), or return the existing conversion.

    The conversion is redone if a file in `folder` has changed since. Prints how many transitions were read, and how
    many padding transitions were dropped.

    Args:
        folder: the folder of a game's buffers.
        target: the file to make; see `conversion_path`.
        game: its name, for the attributes.
        num_actions: number of actions of the game.

    Raises:
        UserError: see `select`; or the target cannot be written. Leaves nothing behind on error.
    """
    digest = _digest(folder, selection)
    ensure(
        target,
        lambda: _convert(folder, target, selection, digest, game=game, num_actions=num_actions),
        is_good=lambda path: _digest_of(path) == digest,
        waiting=f"another process is converting '{folder}'; waiting for it",
    )
    return target


def _convert(folder: Path, target: Path, selection: Selection, digest: str, *, game: str, num_actions: int) -> None:
    """See `convert`."""
    chosen = select(folder, selection, num_actions=num_actions)
    counts = {buffer.number: count for buffer, count in chosen}
    clipped = rewards_look_clipped(buffer.rewards[: int(buffer.lengths[:count].sum())] for buffer, count in chosen)
    attributes = {"game": game, "generator": "DQN-replay", "selection": asdict(selection), "source": folder.parent.name}
    attributes |= {SOURCE_DIGEST: digest, CLIPPED: clipped, "episodes_of_buffers": counts}
    padding = steps = episodes = unmarked = 0
    with TrajectoryWriter(
        target,
        observation_shape=(1, *FRAME_SHAPE),
        observation_dtype="uint8",
        action_dtype=np.min_scalar_type(num_actions - 1),
        attributes=attributes,
    ) as writer:
        for buffer, count in chosen:
            for episode in buffer.episodes(count):
                padding += episode.padding
                steps += len(episode.actions)
                if len(episode.actions):
                    episodes += 1
                    unmarked += not episode.marked
                    arrays = (episode.frames[:, None], episode.actions, episode.rewards)
                    writer.add_episode(*arrays, terminal=episode.terminal)
    found = f"; {unmarked} of them have no end mark and end at the next one's padding" if unmarked else ""
    print(
        f"'{folder}': converted {steps} transitions of {episodes} episodes from {len(counts)} buffers to "
        f"'{target}'; dropped {padding} padding transitions{found}",
        flush=True,
    )


def rewards_look_clipped(columns: Iterator[np.ndarray]) -> bool:
    """Whether all rewards are within [-1, 1]."""
    return all(np.abs(column).max(initial=0.0) <= 1 for column in columns)


def export_folder(directory: str | Path, game: str, *, overwrite: bool) -> Path:
    """The folder that `export_replay` writes to. Raises UserError if it exists and ``overwrite`` is False."""
    target = Path(directory) / game / "1" / "replay_logs"
    if target.exists() and not overwrite:
        raise UserError(f"'{target}' exists; add --overwrite true to replace it, or name another folder")
    return target


def export_replay(
    source: str | Path, directory: str | Path, *, game: str, capacity: int = CAPACITY, overwrite: bool = False
) -> Path:
    """Write a trajectory file of single frames as DQN-replay files.

    Every episode ends with a terminal, even one that reached the step limit, because the format has no other end. An
    unfinished one has none. An episode that does not fit into the current buffer goes into the next one.

    Args:
        source: a trajectory file with observations (1, 84, 84) uint8 and discrete actions.
        directory: {game}/1/replay_logs is created in it.
        game: name of the folder, such as Pong.
        capacity: maximum number of transitions per buffer, including padding.
        overwrite: replace an existing folder.

    Returns:
        The folder of the files.

    Raises:
        UserError: the source is invalid, the folder exists and ``overwrite`` is False, an episode is longer than a
            buffer, or the folder is not writable. Leaves nothing behind on error.
    """
    target = export_folder(directory, game, overwrite=overwrite)
    with TrajectoryFile(source, observation_shape=(1, *FRAME_SHAPE), observation_dtype="uint8") as file:
        if file.lengths.max() + PADDING > capacity:
            raise UserError(f"'{source}' has an episode of {file.lengths.max()} steps; a buffer holds {capacity}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary(target, folder=True) as place:
                export_folder(directory, game, overwrite=overwrite)  # another process may have made it meanwhile
                for number, episodes in enumerate(_into_buffers(file.lengths, capacity)):
                    _write_buffer(file, episodes, place, number)
                sync_directory(place)
                _put_in_place(place, target)
        except OSError as error:
            raise UserError(f"'{target}' cannot be written: {error.strerror or error}") from error
    return target


def _put_in_place(folder: Path, target: Path) -> None:
    """Move a folder into place; a non-empty folder there is moved aside first, as it cannot be replaced directly."""
    with temporary(target) as old:
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(folder, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
        sync_directory(target.parent)


def _into_buffers(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """The episode numbers of each buffer, in order."""
    buffers: list[list[int]] = [[]]
    used = 0
    for episode, length in enumerate(lengths + PADDING):
        if used + length > capacity:
            buffers.append([])
            used = 0
        buffers[-1].append(episode)
        used += length
    return [np.array(episodes) for episodes in buffers]


def _write_buffer(file: TrajectoryFile, episodes: np.ndarray, folder: Path, number: int) -> None:
    """Write the six files of one buffer."""
    lengths = file.lengths[episodes]
    total = int((lengths + PADDING).sum())
    first = int(file.starts[episodes[0]])
    # Position of the file's steps in the buffer: each episode comes after the padding of all episodes up to it.
    place = np.arange(lengths.sum()) + PADDING * (1 + np.repeat(np.arange(len(episodes)), lengths))
    actions, rewards, terminals = np.zeros(total, np.int32), np.zeros(total, np.float32), np.zeros(total, np.uint8)
    steps = slice(first, first + int(lengths.sum()))
    actions[place], rewards[place] = file.actions[steps], file.rewards[steps]
    terminals[np.cumsum(lengths + PADDING) - 1] = file.whole[episodes]
    cursor = total  # as if the buffer continued: the transitions around its end may not be sampled
    invalid = (np.arange(cursor - 1, cursor + STACK)) % total
    small = {"$store$_action": actions, "$store$_reward": rewards, "$store$_terminal": terminals}
    for name, values in (small | {"add_count": np.array(total), "invalid_range": invalid}).items():
        with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb", compresslevel=6) as stream:
            np.save(stream, values, allow_pickle=False)
    with gzip.open(store_path(folder, "observation", number), "wb", compresslevel=6) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (total, *FRAME_SHAPE)}
        np.lib.format.write_array_header_1_0(stream, header)
        for episode in episodes:
            stream.write(bytes(PADDING * _FRAME_BYTES))
            stop = int(file.starts[episode] + file.lengths[episode])
            for start in range(int(file.starts[episode]), stop, _BLOCK):
                stream.write(file.read(start, min(start + _BLOCK, stop))[0].data)


@contextlib.contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Turn errors caused by a damaged file into a `UserError` that names it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, ValueError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"'{path}' is truncated or damaged ({error}): copy it again") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[gzip.GzipFile, tuple[int, ...], np.dtype]]:
    """A store's stream after its header, with shape and dtype. Damage raises `UserError`."""
    with _named_damage(path), gzip.open(path, "rb") as stream:
        shape, dtype = _read_header(stream)
        yield stream, shape, dtype


def _read_header(stream: gzip.GzipFile) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in a stream."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order")
    return shape, dtype


class _FrameReader:
    """Reads frames in chronological order, stretch by stretch. Decompresses only up to the last requested frame."""

    def __init__(self, path: Path, slots: tuple[tuple[int, int], ...]) -> None:
        self._path, self._slots = path, list(slots)
        self._stream: gzip.GzipFile | None = None
        self._left = 0  # frames left in the stretch

    def read(self, count: int) -> np.ndarray:
        """The next frames, (count, 84, 84) uint8. Raises UserError if the file is damaged."""
        parts = []
        with _named_damage(self._path):
            while count:
                if self._stream is None or not self._left:
                    self._stream = self._begin_stretch()
                taken = min(count, self._left)
                parts.append(_read_frames(self._stream, taken, self._path))
                self._left, count = self._left - taken, count - taken
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _begin_stretch(self) -> gzip.GzipFile:
        """Open the file at the next stretch."""
        if self._stream is not None:
            self.finish()
            self._stream.close()
        start, stop = self._slots.pop(0)
        self._left = stop - start
        stream = self._stream = gzip.open(self._path, "rb")
        _read_header(stream)
        for first in range(0, start, _BLOCK):
            _read_frames(stream, min(_BLOCK, start - first), self._path)
        return stream

    def finish(self) -> None:
        """Read to the end of the file, where its checksum is."""
        with _named_damage(self._path):
            while self._stream is not None and self._stream.read(_BLOCK * _FRAME_BYTES):
                pass

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def _check_header(path: Path, name: str) -> int:
    """The number of transitions in a store, from its header, without decompressing the rest.

    The last four bytes of a gzip file are its uncompressed size modulo 2^32, which reveals a truncated file.
    """
    with _opened(path) as (stream, shape, dtype):
        frames = name == "observation"
        expected = (len(shape) and shape[0], *FRAME_SHAPE) if frames else shape[:1] + (1,) * (shape[1:] == (1,))
        if shape != expected or not shape or dtype.kind not in _STORES[name] or (frames and dtype != np.uint8):
            wanted = "frames (n, 84, 84) of type uint8" if frames else f"{_KINDS[name]} per transition, (n,)"
            raise UserError(f"'{path}' has dtype {dtype} and shape {shape}; expected {wanted}")
        size = stream.tell() + int(np.prod(shape)) * dtype.itemsize
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        stated = int.from_bytes(file.read(4), "little")
    if stated != size % 2**32:
        raise UserError(f"'{path}' is truncated: its size field does not match {size} bytes; copy it again")
    return shape[0]


def _read_numbers(path: Path) -> np.ndarray:
    """Read a whole store of numbers and verify the file's checksum."""
    with _opened(path) as (stream, shape, dtype):
        content = stream.read()  # to the end, where the checksum is
        return np.frombuffer(content, dtype, count=shape[0])


def _read_frames(stream: gzip.GzipFile, count: int, path: Path) -> np.ndarray:
    """The next frames of a stream, (count, 84, 84) uint8."""
    content = stream.read(count * _FRAME_BYTES)
    if len(content) < count * _FRAME_BYTES:
        raise UserError(f"'{path}' is truncated; copy it again")
    return np.frombuffer(content, np.uint8).reshape(count, *FRAME_SHAPE)


def _digest(folder: Path, selection: Selection) -> str:
    """A digest of the selection and of the names, sizes and modification times of all stores."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*_ckpt.*.gz"))]
    return hashlib.sha256(repr((_VERSION, asdict(selection), stats)).encode()).hexdigest()


def _digest_of(target: Path) -> Any:
    """The digest stored in a converted file; None if it is not one."""
    return attributes_of(target).get(SOURCE_DIGEST)
