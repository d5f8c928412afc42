"""Find where episodes end in third-party data, from every array that commonly marks it.

    at an episode's last step    terminals, terminations, is_terminal, ...   it ended in a terminal state
                                 timeouts, truncations, ...                  it was cut off
                                 done, dones                                 either, or only the former
                                 is_last, episode_terminals, ...             either
                                 discount 0, not_done 0                      it ended in a terminal state
    at its first step            is_first, reset, episode_starts, ...
    at each of its steps         episode_id, traj_id, ...: one number per episode; frame_index, ...: counted from 0
    for each episode             episode_ends, episode_lengths, ...: where it ends, how long it is
    successors                   next_observations[t] is observations[t + 1], unless an episode ends with step t

If data has several of these, they must agree. Impossible marks (contradictions, an episode longer than the task allows,
successors that do not match) raise `UnclearEnds` with the position; repairs are reported in `Ends.notes`. The project's
own files mark every end in two arrays and are not examined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import h5py
import numpy as np

from RATE_model.data.hdf5 import Hdf5

Kind = Literal["terminal", "timeout", "done", "last", "first", "number", "counter", "stops", "starts", "lengths"]

BLOCK_BYTES = 64 * 2**20  # successors are compared in blocks of about this size
SUCCESSORS = ("next_observations", "next_observation", "next_obs", "observations_next", "new_observations")

_KINDS: dict[Kind, Sequence[str]] = {
    "terminal": ("terminals terminal terminations termination terminated terminateds is_terminal is_terminated "
                 "discount discounts not_done not_dones nonterminal nonterminals").split(),
    "timeout": ("timeouts timeout truncations truncation truncated truncateds is_truncated timelimit.truncated "
                "time_limit_truncated").split(),
    "done": ["done", "dones", "is_done", "dones_float"],
    "last": ["is_last", "episode_terminals", "episode_end", "is_end", "end_of_episode", "episode_done"],
    "first": ["is_first", "reset", "resets", "episode_start", "is_start", "start_of_episode"],
    "number": ("episode_id episode_ids episode_index episode_indices episode_idx episode_num episode_number traj_id "
               "traj_ids traj_index traj_idx traj_num trajectory_id trajectory_ids trajectory_index").split(),
    "counter": ["frame_index", "episode_step", "episode_steps", "step_in_episode", "timestep", "timesteps"],
    "stops": ["episode_ends", "ends", "traj_ends", "trajectory_ends", "episode_end_indices"],
    "starts": ["episode_starts", "starts", "traj_starts", "trajectory_starts", "episode_start_indices"],
    "lengths": ["episode_lengths", "episode_lens", "traj_lengths", "traj_lens", "trajectory_lengths"],
}  # fmt: skip
_ZERO_ENDS = ("discount", "discounts", "not_done", "not_dones", "nonterminal", "nonterminals")
_KIND_OF: dict[str, Kind] = {name: kind for kind, names in _KINDS.items() for name in names}
_SUSPICIOUS = re.compile(
    r"(^|_)(dones?|ends?|ended|finished|term\w*|trunc\w*|time_?outs?|time_?limits?|firsts?|lasts?|finals?|resets?"
    r"|episodes?|traj\w*|boundar\w*|starts?|stops?|eo[est])(_|$)"
)


class UnclearEnds(Exception):
    """An inconsistency, worded as the rest of a sentence that starts with the name of the data."""


@dataclass(frozen=True, eq=False)
class Ends:
    """Where episodes end among N steps.

    Attributes:
        last: (N,) bool, whether an episode ends with each step. Steps after the last end form an episode without an
            end.
        terminal: (N,) bool, whether it ended there in a terminal state.
        first: (N,) bool, whether an episode is known to start with each step.
        begins: whether an episode starts with step 0; None: unknown.
        open: whether an array that marks every last step leaves step N - 1 unmarked.
        notes: what was repaired or is doubtful, as sentences without a subject.
    """

    last: np.ndarray
    terminal: np.ndarray
    first: np.ndarray
    begins: bool | None = None
    open: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Mark:
    """One array: the steps that it marks as last, (N,) bool."""

    name: str
    kind: Kind
    last: np.ndarray
    begins: bool | None = None  # as `Ends.begins`
    knows_tail: bool = True  # whether it could mark step N - 1 as a last step

    @property
    def every(self) -> bool:
        """Whether it marks all ends, not only some."""
        return self.kind not in ("terminal", "timeout", "done")


def _leaf(name: str) -> str:
    """An array's name without its groups."""
    return name.rpartition("/")[2].lower()


def kind_of(name: str) -> Kind | None:
    """The meaning of an array's name (``infos/...`` included) for ends; None: unknown."""
    return _KIND_OF.get(_leaf(name))


def can_mark_every_end(names: Iterable[str]) -> bool:
    """Whether arrays of these names can mark every end: ``timeouts`` alone omit terminal states."""
    return not {kind_of(name) for name in names} <= {None, "timeout"}


def possible_marks(names: Iterable[str]) -> list[str]:
    """The names among these that look like end marks but are unknown."""
    return [name for name in names if kind_of(name) is None and _SUSPICIOUS.search(_leaf(name))]


def note_on_ignored(names: Iterable[str]) -> str:
    """A note about such arrays, worded as a sentence without a subject."""
    listed = ", ".join(f"'{name}'" for name in names)
    return f"has {listed}, which may mark ends of episodes but have unknown names; ignored"


def one_column(values: np.ndarray) -> np.ndarray:
    """A column (N, 1) as (N,), since PyTorch code often stores columns; anything else unchanged."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def find_ends(
    marks: Mapping[str, np.ndarray],
    steps: int,
    *,
    follows: np.ndarray | None = None,
    max_steps: int | None = None,
    one_step: bool = True,
) -> Ends:
    """Find the ends of episodes from all arrays that mark them.

    Args:
        marks: the arrays by name; unknown names are ignored.
        steps: N, at least 1.
        follows: (N - 1,) bool, whether the successor of step t is the observation of step t + 1; None: unknown.
        max_steps: the longest possible episode. If nothing marks truncated episodes, they end after this many steps.
        one_step: whether episodes may have a single step; if not, two ends in a row are refused, otherwise three.

    Raises:
        UnclearEnds: an array is not a valid mark of ends, or the arrays contradict each other.
    """
    read = [_mark(name, np.asarray(values), steps) for name, values in marks.items() if kind_of(name)]
    read = [mark for mark in read if mark is not None]
    every, some = ([mark for mark in read if mark.every is wanted] for wanted in (True, False))
    _check_agreement(every, some, steps)
    last = np.logical_or.reduce([mark.last for mark in every or some] or [np.zeros(steps, bool)])
    last[-1] |= any(mark.last[-1] for mark in some)
    notes: list[str] = []
    broken = np.zeros(steps, dtype=bool)
    if follows is not None:
        broken[:-1] = ~follows & ~last[:-1]
        notes += _check_breaks(broken, last, every)
    last |= broken
    if max_steps is not None:
        notes += _limit(last, max_steps, every, some, broken)
    elif not every and follows is None:
        notes += _never_cut(last, some)
    _check_rows(last, 3 if one_step else 2, read)
    terminal = np.logical_or.reduce([m.last for m in some if m.kind != "timeout"] or [np.zeros(steps, bool)])
    begins = [mark.begins for mark in every if mark.begins is not None]
    first = np.concatenate([[bool(begins and begins[0])], last[:-1]])
    still_open = not last[-1] and any(mark.knows_tail for mark in every)
    return Ends(last, terminal & last, first, begins[0] if begins else None, still_open, tuple(notes))


def within_episode(
    marks: Mapping[str, np.ndarray],
    steps: int,
    *,
    follows: np.ndarray | None = None,
    max_steps: int | None = None,
) -> Ends:
    """`find_ends` for steps stored as one episode, which ends with the last step at the latest.

    Raises:
        UnclearEnds: as `find_ends`; or an end is marked before the last step, or there are too many steps.
    """
    marked = find_ends(marks, steps)
    if marked.last[:-1].any():
        step = int(np.argmax(marked.last))
        raise UnclearEnds(f"has an end at step {step} of {steps}: expected one episode")
    if max_steps is not None and steps > max_steps:
        raise UnclearEnds(f"has {steps} steps; an episode has at most {max_steps}")
    broken = find_ends(marks, steps, follows=follows)
    last = broken.last.copy()
    last[-1] = True
    return replace(broken, last=last)


def successors_follow(observations: np.ndarray, successors: np.ndarray) -> np.ndarray:
    """Whether the successor of each step except the last is the next step's observation: (N - 1,) bool of (N, ...)."""
    after, here = observations[1:], successors[:-1]
    follows = (here == after).reshape(len(here), math.prod(here.shape[1:])).all(axis=1)
    if after.dtype.kind == "f":  # both may be roundings of the same number, if types were converted in between
        rows = np.flatnonzero(~follows)
        close = np.isclose(here[rows], after[rows], rtol=1e-5, atol=1e-6)
        follows[rows] = close.reshape(len(rows), math.prod(here.shape[1:])).all(axis=1)
    return follows


def ends_of_file(file: Hdf5, steps: int, *, max_steps: int | None = None) -> Ends:
    """Find the ends of episodes in flat arrays of a third-party HDF5 file.

    Args:
        file: has ``observations`` (N, ...), and end marks at any depth except under ``metadata``.
        steps: N.
        max_steps: see `find_ends`.

    Raises:
        UnclearEnds: see `find_ends`; or nothing in the file marks ends.
    """
    arrays = _arrays(file)
    marks = {name: array[:] for name, array in arrays.items() if kind_of(name)}
    others = possible_marks(name for name, array in arrays.items() if array.shape[:1] == (steps,))
    if not can_mark_every_end(marks):
        found = f" ({note_on_ignored(others)})" if others else ""
        raise UnclearEnds(f"has no terminals, nor any other known array that marks where episodes end{found}")
    ends = find_ends(marks, steps, follows=_follows(file), max_steps=max_steps)
    notes = [*ends.notes, *([note_on_ignored(others)] if others else [])]
    if not ends.last[-1] and (known := np.flatnonzero(ends.last)).size:
        notes.append(f"has {steps - 1 - known[-1]} steps after its last end, an unfinished episode; left out")
    return Ends(ends.last, ends.terminal, ends.first, ends.begins, ends.open, tuple(notes))


def layout_of(file: Hdf5) -> str:
    """A hint for a file that lacks flat arrays: the layout that it resembles, or an empty string."""
    names = sorted(file)
    numbered = [name for name in names if re.fullmatch(r"(observations|actions|rewards)_\d+", name)]
    groups = [name for name in names if isinstance(file[name], h5py.Group)]
    groups += [f"{name}/{inner}" for name in groups for inner in sorted(file[name])]
    groups = [name for name in groups if isinstance(file[name], h5py.Group) and {"actions", "action"} & set(file[name])]
    if numbered:
        kept = f"an array for each episode ('{numbered[0]}', ...)"
    elif groups:
        kept = f"a group for each episode ('{groups[0]}', ...)"
    else:
        return ""
    return f"; it has {kept}, an unsupported layout: concatenate the episodes into flat arrays, as D4RL does"


def _arrays(file: Hdf5) -> dict[str, Hdf5]:
    """All numeric arrays that may describe each step or episode, by name."""
    found: dict[str, Hdf5] = {}

    def visit(name: str, item: Hdf5) -> None:
        numbers = isinstance(item, h5py.Dataset) and item.ndim in (1, 2) and item.dtype.kind in "biuf"
        if numbers and not name.startswith("metadata/") and name not in SUCCESSORS:
            found[name] = item

    file.visititems(visit)
    return found


def _follows(file: Hdf5) -> np.ndarray | None:
    """Whether the successor of each step except the last is the next step's observation; None without successors."""
    names = [name for name in SUCCESSORS if isinstance(file.get(name), h5py.Dataset)]
    if not names:
        return None
    observations, successors = file["observations"], file[names[0]]
    if successors.shape != observations.shape:
        raise UnclearEnds(f"has '{names[0]}' of shape {successors.shape}; expected that of 'observations'")
    steps = len(observations)
    follows = np.ones(steps - 1, dtype=bool)
    block = max(1, BLOCK_BYTES // max(8, 8 * math.prod(observations.shape[1:])))
    for start in range(0, steps - 1, block):
        rows = slice(start, min(start + block, steps - 1) + 1)
        follows[rows.start : rows.stop - 1] = successors_follow(observations[rows], successors[rows])
    return follows


def _mark(name: str, values: np.ndarray, steps: int) -> _Mark | None:
    """The mark in an array of a known name; None if it carries no information."""
    kind, values = _KIND_OF[_leaf(name)], one_column(np.asarray(values))
    if values.dtype.kind not in "biuf":
        raise UnclearEnds(f"has '{name}' of type {values.dtype}; expected numbers")
    if kind in ("stops", "starts", "lengths"):
        return _listed(name, kind, values, steps)
    if values.size == 1 and steps > 1:  # one number for all steps
        if kind in ("number", "counter", "first") or _leaf(name) in _ZERO_ENDS:
            return None
        values = np.append(np.zeros(steps - 1, values.dtype), values)
    if values.shape != (steps,):
        raise UnclearEnds(f"has '{name}' of shape {values.shape}; expected {(steps,)}")
    if kind in ("number", "counter"):
        return _numbered(name, kind, values)
    if _leaf(name) in _ZERO_ENDS:
        bad, flags = ~((values >= 0) & (values <= 1)), values == 0
    else:
        bad, flags = (values != 0) & (values != 1), values != 0
    if bad.any():
        step = int(np.argmax(bad))
        raise UnclearEnds(f"has {values[step]} in '{name}' at step {step} of {steps}; expected 0 or 1")
    return _first(name, flags) if kind == "first" else _Mark(name, kind, flags)


def _first(name: str, flags: np.ndarray) -> _Mark:
    """A mark from flags at first steps."""
    return _Mark(name, "first", np.append(flags[1:], False), begins=bool(flags[0]), knows_tail=False)


def _numbered(name: str, kind: Kind, values: np.ndarray) -> _Mark | None:
    """A mark from one number per episode, or from a per-episode step counter."""
    change = values[1:] != values[:-1] + (kind == "counter")
    if kind == "counter" and not (change & (values[1:] == values.min())).any():
        return None  # counts the steps of all episodes, or is unrelated
    runs = values[np.concatenate([[True], change])]
    if kind == "number" and len(np.unique(runs)) < len(runs):
        seen, first = np.unique(runs, return_index=True)
        again = np.setdiff1d(np.arange(len(runs)), first)[0]
        step = int(np.flatnonzero(change)[again - 1]) + 1
        raise UnclearEnds(
            f"has '{name}' return to {runs[again]} at step {step}: steps are not in chronological order, episode by "
            "episode"
        )
    begins = bool(values[0] == values.min()) if kind == "counter" else None
    return _Mark(name, kind, np.append(change, False), begins=begins, knows_tail=False)


def _listed(name: str, kind: Kind, values: np.ndarray, steps: int) -> _Mark:
    """A mark from a list of the ends, starts or lengths of episodes, or from flags under such a name."""
    if values.shape == (steps,) and steps > 1 and np.isin(values, (0, 1)).all() and kind != "lengths":
        return _first(name, values != 0) if kind == "starts" else _Mark(name, "last", values != 0)
    last, values = np.zeros(steps, dtype=bool), np.atleast_1d(values)
    stops = np.cumsum(values) if kind == "lengths" else values
    good = values.ndim == 1 and len(values) > 0 and values.dtype.kind in "iu" and (np.diff(stops.astype(int)) > 0).all()
    if good and kind == "starts":
        good = values[0] == 0 and values[-1] < steps
        stops = np.append(values[1:], steps)
    elif good and kind == "stops":
        stops = values + 1 if values[-1] == steps - 1 else values  # the last step itself, or the one after it
    if not good or stops[0] < 1 or stops[-1] != steps:
        raise UnclearEnds(f"has '{name}', which does not divide {steps} steps into episodes")
    last[stops.astype(int) - 1] = True
    return _Mark(name, kind, last, begins=True)


def _check_agreement(every: list[_Mark], some: list[_Mark], steps: int) -> None:
    """Raise `UnclearEnds` if two arrays contradict each other."""

    def refuse(wrong: np.ndarray, says: _Mark, denies: _Mark) -> None:
        if wrong.any():
            step = int(np.argmax(wrong))
            raise UnclearEnds(
                f"contradicts itself: by '{says.name}' an episode ends with step {step} of {steps}, by '{denies.name}' "
                "it goes on"
            )

    for one in every:
        for other in every:
            refuse((one.last & ~other.last)[: None if one.knows_tail and other.knows_tail else -1], one, other)
    for one in some:
        for other in every:
            refuse((one.last & ~other.last)[: None if other.knows_tail else -1], one, other)
    terminal, cut, done = ([mark for mark in some if mark.kind == kind] for kind in ("terminal", "timeout", "done"))
    for both in done:
        for one in terminal:
            refuse(one.last & ~both.last, one, both)
        if terminal and any(mark.last.any() for mark in cut):
            known = np.logical_or.reduce([mark.last for mark in terminal + cut])
            refuse(both.last & ~known, both, terminal[0])


def _check_breaks(broken: np.ndarray, last: np.ndarray, every: list[_Mark]) -> list[str]:
    """A note on steps (N,) whose successor is not the next observation although nothing marks an end; or
    `UnclearEnds`."""
    count, steps = int(broken.sum()), len(broken)
    if not count:
        return []
    step = int(np.argmax(broken))
    place = f"the successor of step {step} is not the observation of step {step + 1}"
    if 2 * count > steps:
        raise UnclearEnds(f"is not in chronological order: {place}; the same holds at {count} of {steps} steps")
    if every:
        raise UnclearEnds(f"contradicts itself: {place}, but by '{every[0].name}' the episode continues there")
    beside = np.concatenate([last[1:], [False]]) | np.concatenate([[False], last[:-1]])
    if 2 * (broken & beside).sum() > count:
        raise UnclearEnds(f"contradicts itself: {place}, but an end is marked one step away")
    return [f"marks no end at {count} steps whose successor does not match (first: step {step}); episodes end there"]


def _limit(last: np.ndarray, most: int, every: list[_Mark], some: list[_Mark], broken: np.ndarray) -> list[str]:
    """Limit episodes to ``most`` steps: if nothing marks truncations, end them there, in ``last``; else `UnclearEnds`.

    Returns a note about the change.
    """
    stops = np.append(np.flatnonzero(last[:-1]) + 1, len(last))
    starts = np.append(0, stops[:-1])
    if broken.any() and stops[-1] - starts[-1] >= most - 1:
        last[-1] = True  # each truncated piece lacks its last step, including the last piece
    if every or broken.any() or any(mark.kind == "timeout" and mark.last.any() for mark in some):
        if (long := stops - starts > most).any():
            episode = int(np.argmax(long))
            raise UnclearEnds(
                f"has {stops[episode] - starts[episode]} steps in episode {episode}, {starts[episode]} to "
                f"{stops[episode] - 1}; an episode has at most {most}, so an end is not marked"
            )
        return []
    step = np.arange(len(last)) - np.repeat(starts, stops - starts)
    added = (step % most == most - 1) & ~last
    last |= added
    if not added.any():
        return []
    return [
        f"does not mark truncations; {added.sum()} episodes end after {most} steps, the task's limit (first: "
        f"step {np.argmax(added)})"
    ]


def _never_cut(last: np.ndarray, some: list[_Mark]) -> list[str]:
    """A note on arrays for truncations that are never set, where nothing else tells ends and no limit is known."""
    cut = [mark for mark in some if mark.kind == "timeout"]
    if not cut or any(mark.last.any() for mark in cut):
        return []
    longest = int(np.diff(np.flatnonzero(np.concatenate([[True], last[:-1], [True]]))).max())
    return [
        f"has '{cut[0].name}', which are never set: if episodes were cut off at a step limit, each is joined with the "
        f"next (the longest has {longest} steps)"
    ]


def _check_rows(last: np.ndarray, least: int, marks: list[_Mark]) -> None:
    """Raise `UnclearEnds` if ``least`` ends follow each other: these are no end marks, or padding."""
    row = np.lib.stride_tricks.sliding_window_view(last, least).all(axis=1) if len(last) >= least else np.zeros(1, bool)
    if row.any():
        step = int(np.argmax(row))
        names = ", ".join(f"'{mark.name}'" for mark in marks if mark.last[step])
        raise UnclearEnds(
            f"has an end at each of the steps {step} to {step + least - 1} ({names}): padding, or not end marks"
        )
