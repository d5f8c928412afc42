"""The DQN-replay format: dopamine's replay buffers on disk (Castro et al. 2018, arXiv 1812.06110), read and written.

    {data}/{Game}/1/replay_logs/
        $store$_observation_ckpt.N.gz   (n, 84, 84) uint8, single frames
        $store$_action_ckpt.N.gz        (n,) int32
        $store$_reward_ckpt.N.gz        (n,) float32
        $store$_terminal_ckpt.N.gz      (n,) uint8, 1 on the last transition of an episode
        add_count_ckpt.N.gz             () int64, transitions ever added to the buffer
        invalid_range_ckpt.N.gz         (5,) int64, transitions around its cursor that are no samples

Every file is one gzip member around what `numpy.save` writes. The public buffers hold a million transitions each,
N = 0 to 49. Before every episode stand three transitions of zeros (a stack of four frames needs them); they are no play
and are left out here. The first transitions of a buffer may be the rest of an episode that the buffer before began, the
last ones the beginning of one that the next buffer ends: the first are used, the last are not, as nobody knows what
they still earned.

A buffer is a ring. Its cursor, add_count modulo its capacity, is the slot that is written next:

    add_count <  capacity      o0 o1 o2 o3 -- --       slots from the cursor on were never written, and hold anything
                                           ^
    add_count >= capacity      o6 o7 o2 o3 o4 o5       the oldest transition is at the cursor: play is o2, ..., o7
                                     ^

The public buffers were saved one transition before they were full: the cursor is at their last slot, which is left out.
An episode that was cut off has no terminal. Newer versions of dopamine list its end in episode_end_indices_ckpt.N.gz;
without that, the padding of the next episode shows it.

What a training asks for is selected as the published code does it (`Selection`), checked, and converted once to the
project's own layout (`convert`). Only what is selected is decompressed.
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

STACK = 4  # frames that an agent sees at once
PADDING = STACK - 1  # transitions of zeros before every episode
FRAME_SHAPE = (84, 84)
CAPACITY = 1_000_000  # transitions of a public buffer
PUBLISHED_BUFFERS = 50
PUBLISHED_TRANSITIONS = 500_000
SOURCE_DIGEST = "source_digest"  # attribute of a converted file
CLIPPED = "rewards_look_clipped"  # attribute of a converted file
# Names of the stores, and the kinds of numbers that each may hold: dopamine has changed types within a kind.
_STORES = {"observation": "u", "action": "iu", "reward": "f", "terminal": "biu"}
_KINDS = {"action": "an integer", "reward": "a floating-point number", "terminal": "an integer or a boolean"}
_VERSION = 2  # of the conversion; another one converts again
_FRAME_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1]
_BLOCK = 2000  # frames that are in memory at a time


@dataclass(frozen=True)
class Selection:
    """Which transitions of a DQN-replay copy are trained on."""

    # DQN-replay data: buffers that are drawn from, 0 to this number less one
    buffers: int = PUBLISHED_BUFFERS
    # DQN-replay data: draw until there are this many transitions; none = 500,000. Our own data: make this many where it
    # is missing; none = as many as its script makes
    transitions: int | None = None
    # DQN-replay data: whole episodes of a draw, in a row, behind those drawn from that buffer before
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
    """One buffer's small stores, checked.

    Attributes:
        folder, number: where its files are.
        slots: where the transitions lie, (first, after the last) of each stretch, in the order of play.
        starts, lengths: (E,) int64, first transition and number of transitions of every finished episode, the padding
            before it included: frames tell what is padding, and are not read yet.
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
        """The first `count` episodes without their padding; nothing after them is decompressed.

        Raises:
            UserError: the observations' file is damaged.
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
        marked: whether its end was marked; else only the padding of the next one showed it.
        padding: transitions of zeros before it, left out.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    marked: bool
    padding: int


def store_path(folder: Path, name: str, number: int) -> Path:
    """The file of a store of a buffer."""
    return folder / f"$store$_{name}_ckpt.{number}.gz"


def find_replay_logs(place: Path, game: str) -> Path | None:
    """The folder of a game's buffers: `place` itself, or below it as {Game}/1/replay_logs; None: there are none."""
    for folder in (place, place / "replay_logs", place / "1" / "replay_logs", place / game / "1" / "replay_logs"):
        if folder.is_dir() and buffer_numbers(folder):
            return folder
    return None


def buffer_numbers(folder: Path) -> list[int]:
    """The numbers of the buffers of which any store is there, ascending."""
    names = (path.name.removesuffix(".gz").rpartition("_ckpt.")[2] for path in folder.glob("$store$_*_ckpt.*.gz"))
    return sorted({int(name) for name in names if name.isdigit()})


def read_buffer(folder: Path, number: int, *, num_actions: int, limit: int = CAPACITY) -> Buffer:
    """A buffer without its frames.

    Args:
        folder: of the files.
        number: N.
        num_actions: actions lie between 0 and num_actions - 1.
        limit: episodes that end after the first this many transitions are left out.

    Raises:
        UserError: a store is missing, truncated or damaged, or holds something else; stores differ in length, or the
            order of play is unclear.
    """
    paths = {name: store_path(folder, name, number) for name in _STORES}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"buffer {number} in '{folder}' is incomplete: there is no {', '.join(missing)}; copy what is missing, or "
            "move the other files of this buffer away"
        )
    lengths = {name: _check_header(path, name) for name, path in paths.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"buffer {number} in '{folder}' has stores of different lengths ({listed}): copy it again")
    slots = _in_order(folder, number, lengths["action"])
    rows = np.concatenate([np.arange(*stretch) for stretch in slots])  # slots in the order of play
    actions, rewards, terminals = (_read_numbers(paths[name])[rows] for name in ("action", "reward", "terminal"))
    if (bad := (actions < 0) | (actions >= num_actions)).any():
        where = int(np.argmax(bad))
        raise UserError(
            f"'{paths['action']}' has action {actions[where]} at transition {rows[where]}; allowed is 0 to "
            f"{num_actions - 1}: is this the game that --game names?"
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
    """Stretches (first slot, slot after the last) of what was written, the oldest first.

    Raises:
        UserError: `add_count` and `invalid_range` contradict each other or the stores, or there is too little of them.
    """
    count, invalid = (_read_small(folder / f"{name}_ckpt.{number}.gz") for name in ("add_count", "invalid_range"))
    here = f"buffer {number} in '{folder}'"
    if count is not None:
        total = int(count.ravel()[0])
    elif invalid is not None and invalid.size > STACK:
        # It holds STACK slots from the cursor on, and before it as many as there are steps to a sample's next state.
        cursor = int(invalid.ravel()[-STACK]) % capacity
        if 0 < cursor < capacity - STACK:
            raise UserError(f"{here} has no add_count, which tells the order of its transitions: copy it too")
        total = capacity + cursor
    else:
        print(f"note: {here} has no add_count: it is taken to be full, with its first slot the oldest", flush=True)
        total = capacity
    cursor = total % capacity
    if total and invalid is not None and (invalid.max() >= capacity or cursor not in invalid):
        raise UserError(
            f"{here}: add_count {total} and invalid_range {invalid.astype(int).tolist()} do not fit stores of "
            f"{capacity} transitions: they were cut, or the files are of different buffers; copy them again"
        )
    if total < capacity:
        return ((0, total),)
    if cursor and capacity - cursor <= STACK:  # what is older than slot 0 is too short for one stack of frames
        return ((0, cursor),)
    return ((cursor, capacity), (0, cursor)) if cursor else ((0, capacity),)


def _listed_ends(folder: Path, number: int) -> np.ndarray:
    """Slots at which episodes ended by newer versions of dopamine, which list them; else none."""
    listed = _read_small(folder / f"episode_end_indices_ckpt.{number}.gz")
    return np.empty(0, int) if listed is None else listed


def _read_small(path: Path) -> np.ndarray | None:
    """A number or a few, as `numpy.save` or pickle has written them; None: there is no such file."""
    if not path.is_file():
        return None
    with _named_damage(path), gzip.open(path, "rb") as stream:
        content = io.BytesIO(stream.read())
        is_array = content.getvalue()[:6] == b"\x93NUMPY"
        values = np.load(content, allow_pickle=False) if is_array else ArrayUnpickler(content).load()
        values = np.asarray(sorted(values) if isinstance(values, set) else values)
    if values.dtype.kind not in "iuf" and values.size:
        raise UserError(f"'{path}' holds {values.dtype}; expected whole numbers")
    return values


def _without_padding(frames: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> list[tuple[slice, int]]:
    """Rows of each episode among those up to a mark, and how many of padding are left out before it.

    Padding are transitions in which everything is zero: at most three at the beginning, where the buffer may begin too,
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
    """Which episodes are trained on: buffers by number, and how many of each one's first episodes.

    A buffer is drawn uniformly, and the next `trajectories_per_buffer` of its episodes are taken, until there are
    enough transitions or no buffer has an episode left.

    Raises:
        UserError: see `read_buffer`; or there is no buffer below `selection.buffers`, or no whole episode in them.
    """
    numbers = buffer_numbers(folder)
    open_ = [number for number in numbers if number < selection.buffers]
    if not open_:
        raise UserError(f"--buffers {selection.buffers}: '{folder}' has buffers {numbers[0]} to {numbers[-1]} only")
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
        # As the last draw: no more episodes than it takes to have enough.
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
    """Where in a directory the conversion of a selection is kept: a name for each folder and selection."""
    digest = hashlib.sha256(repr((str(folder.resolve()), asdict(selection))).encode()).hexdigest()[:8]
    return directory / f"{game.lower()}_dqn_replay_{digest}.h5"


def convert(folder: Path, target: Path, selection: Selection, *, game: str, num_actions: int) -> Path:
    """Convert a selection to a trajectory file of single frames (1, 84, 84), or return the one that is there.

    It is made again if a file in `folder` has changed since. What was read is printed: how many transitions, and how
    many of padding were left out.

    Args:
        folder: with the buffers of a game.
        target: the file to make; see `conversion_path`.
        game: its name, for the attributes.
        num_actions: of the game.

    Raises:
        UserError: see `select`; or the target cannot be written. Nothing is left behind then.
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
    found = f"; of {unmarked} of them only the padding of the next one shows the end" if unmarked else ""
    print(
        f"'{folder}': {steps} transitions of {episodes} episodes from {len(counts)} buffers converted into "
        f"'{target}'; {padding} transitions of padding left out{found}",
        flush=True,
    )


def rewards_look_clipped(columns: Iterator[np.ndarray]) -> bool:
    """Whether no reward is beyond [-1, 1]."""
    return all(np.abs(column).max(initial=0.0) <= 1 for column in columns)


def export_folder(directory: str | Path, game: str, *, overwrite: bool) -> Path:
    """Where `export_replay` writes. Raises UserError if that is there and is not to be replaced."""
    target = Path(directory) / game / "1" / "replay_logs"
    if target.exists() and not overwrite:
        raise UserError(f"'{target}' is there already: add --overwrite true to replace it, or name another folder")
    return target


def export_replay(
    source: str | Path, directory: str | Path, *, game: str, capacity: int = CAPACITY, overwrite: bool = False
) -> Path:
    """Write a trajectory file of single frames as DQN-replay files.

    Every episode's end is a terminal, also that of one that reached the limit of steps: the format knows no other end.
    An unfinished one has none. An episode that does not fit into a buffer any more goes into the next one.

    Args:
        source: a trajectory file with observations (1, 84, 84) uint8 and discrete actions.
        directory: gets {game}/1/replay_logs.
        game: name of the folder, such as Pong.
        capacity: transitions of a buffer, padding included, at most.
        overwrite: replace that folder if it is there.

    Returns:
        The folder of the files.

    Raises:
        UserError: the source is bad, the folder is there and is not to be replaced, an episode is longer than a buffer,
            or nothing can be written. Nothing is left behind then.
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
    """Move a folder to its place; a folder cannot take the place of one that is not empty, which steps aside."""
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
    """Numbers of the episodes of each buffer, in order."""
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
    """The six files of one buffer."""
    lengths = file.lengths[episodes]
    total = int((lengths + PADDING).sum())
    first = int(file.starts[episodes[0]])
    # Where the file's steps stand in the buffer: each episode behind the padding of all episodes up to it.
    place = np.arange(lengths.sum()) + PADDING * (1 + np.repeat(np.arange(len(episodes)), lengths))
    actions, rewards, terminals = np.zeros(total, np.int32), np.zeros(total, np.float32), np.zeros(total, np.uint8)
    steps = slice(first, first + int(lengths.sum()))
    actions[place], rewards[place] = file.actions[steps], file.rewards[steps]
    terminals[np.cumsum(lengths + PADDING) - 1] = file.whole[episodes]
    cursor = total  # as if the buffer went on: the transitions around its end are no samples
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
    """Turn what damage to a file raises into a `UserError` that names it."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, ValueError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"'{path}' is truncated or damaged ({error}): copy it again") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[gzip.GzipFile, tuple[int, ...], np.dtype]]:
    """A store's stream after its header, with shape and type. What damage raises becomes a `UserError`."""
    with _named_damage(path), gzip.open(path, "rb") as stream:
        shape, dtype = _read_header(stream)
        yield stream, shape, dtype


def _read_header(stream: gzip.GzipFile) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that a stream holds."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran and len(shape) > 1:
        raise ValueError("it is stored column by column")
    return shape, dtype


class _FrameReader:
    """Reads frames in the order of play, stretch after stretch. Nothing behind what is asked for is decompressed."""

    def __init__(self, path: Path, slots: tuple[tuple[int, int], ...]) -> None:
        self._path, self._slots = path, list(slots)
        self._stream: gzip.GzipFile | None = None
        self._left = 0  # frames of the stretch

    def read(self, count: int) -> np.ndarray:
        """The next frames, (count, 84, 84) uint8. Raises UserError where the file is damaged."""
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
        """The file at the next stretch, instead of where it is."""
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
    """The number of transitions in a store, by its header; the rest of the file is not decompressed.

    The last four bytes of a gzip file are the size of what it holds, modulo 2^32: a file that was cut off shows there.
    """
    with _opened(path) as (stream, shape, dtype):
        frames = name == "observation"
        expected = (len(shape) and shape[0], *FRAME_SHAPE) if frames else shape[:1] + (1,) * (shape[1:] == (1,))
        if shape != expected or not shape or dtype.kind not in _STORES[name] or (frames and dtype != np.uint8):
            wanted = "frames (n, 84, 84) of type uint8" if frames else f"{_KINDS[name]} per transition, (n,)"
            raise UserError(f"'{path}' holds numbers of type {dtype} and shape {shape}; expected {wanted}")
        size = stream.tell() + int(np.prod(shape)) * dtype.itemsize
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        stated = int.from_bytes(file.read(4), "little")
    if stated != size % 2**32:
        raise UserError(f"'{path}' is truncated: its end does not say that it holds {size} bytes; copy it again")
    return shape[0]


def _read_numbers(path: Path) -> np.ndarray:
    """A whole store of numbers, with the checksum of the file verified."""
    with _opened(path) as (stream, shape, dtype):
        content = stream.read()  # to the end, where the checksum is
        return np.frombuffer(content, dtype, count=shape[0])


def _read_frames(stream: gzip.GzipFile, count: int, path: Path) -> np.ndarray:
    """The next frames of a stream, (count, 84, 84) uint8."""
    content = stream.read(count * _FRAME_BYTES)
    if len(content) < count * _FRAME_BYTES:
        raise UserError(f"'{path}' is truncated: copy it again")
    return np.frombuffer(content, np.uint8).reshape(count, *FRAME_SHAPE)


def _digest(folder: Path, selection: Selection) -> str:
    """Of the selection and of names, sizes and times of change of all stores."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*_ckpt.*.gz"))]
    return hashlib.sha256(repr((_VERSION, asdict(selection), stats)).encode()).hexdigest()


def _digest_of(target: Path) -> Any:
    """That of a converted file; None if it is none."""
    return attributes_of(target).get(SOURCE_DIGEST)
