"""Make trajectory files in parts: on all cores, and resumable after an interruption.

The episodes are divided into parts of a fixed size. Each part is a trajectory file in ``<name>.parts`` beside the
requested file, made by any free process. Once all exist, they are joined in order and removed. After an interruption,
existing parts are reused. While parts are being joined, the data is on disk twice.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RATE_model.cli.limits import at_least, at_most_processes
from RATE_model.cli.options import Boolean
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.locks import making
from RATE_model.system.processes import available_cores, in_order, in_processes
from RATE_model.system.progress import progress_bar

_RECIPE = "recipe"  # attribute of a part: what it was made from


@dataclass(frozen=True)
class FileOptions:
    """Which file to make, and with how many processes."""

    # File to write; none = a file in --data_dir, named by its content
    output: Path | None = None
    # Replace an existing file
    overwrite: Boolean = False
    # Processes that play; none = one per core. The data does not depend on this
    workers: int | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, workers=self.workers)
        at_most_processes(workers=self.workers)
        if self.output is not None and self.output.suffix not in (".h5", ".hdf5"):
            raise UserError(f"--output '{self.output}': the name must end in .h5 or .hdf5")


@dataclass(frozen=True)
class Job:
    """What to make; the same for every part, and sent to other processes.

    Attributes:
        play: writes episodes ``first`` to ``first + count - 1``, called as ``play(writer, first, count)``: a
            module-level function, or a `functools.partial` of one. An episode must not depend on earlier ones of its
            part.
        layout: arguments of `TrajectoryWriter`: observation_shape, observation_dtype, ...
        recipe: everything that the content depends on, as JSON; parts with a different recipe are not reused.
        episodes_per_part: the most episodes that an interruption can lose, per process.
    """

    play: Callable[[TrajectoryWriter, int, int], None]
    layout: Mapping[str, Any]
    recipe: Mapping[str, Any]
    episodes_per_part: int


def make_in_parts(
    job: Job,
    episodes: int,
    path: Path,
    *,
    attributes: Mapping[str, Any],
    on_join: Callable[[dict[str, Any]], object] = lambda episode: None,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Make a trajectory file. Its content does not depend on the number of workers.

    A second process that requests the same file waits for the first and uses its result.

    Args:
        job: what to make.
        episodes: number of episodes.
        path: the file; it appears when it is complete.
        attributes: attributes of the file; read after all episodes are joined.
        on_join: called with each episode (the arguments of `TrajectoryWriter.add_episode`) before it is joined, to
            modify it or to add notes about all episodes to ``attributes``.
        overwrite: replace an existing file.
        workers: number of processes; None: one per available core.

    Raises:
        UserError: the file exists and ``overwrite`` is False, it cannot be written, a process was killed, or ``play``
            failed.
    """
    with _folder_of_parts(path, overwrite) as folder:
        if folder is None:
            return path
        firsts = range(0, episodes, job.episodes_per_part)
        tasks = [(first, min(job.episodes_per_part, episodes - first)) for first in firsts]
        missing = [task for task in tasks if not _is_done(job, folder, *task)]
        done = len(tasks) - len(missing)
        if done:
            print(f"resuming with {done} of {len(tasks)} parts found in '{folder}'", flush=True)
        made = in_processes(functools.partial(make_part, job, folder), missing, workers or available_cores())
        with contextlib.closing(made), progress_bar(total=episodes, desc="playing", unit="episode") as bar:
            bar.update(episodes - sum(count for _, count in missing))
            for count in made:
                bar.update(count)
        parts = [_part_path(folder, first // job.episodes_per_part) for first in firsts]
        with progress_bar(total=episodes, desc="joining", unit="episode") as bar:

            def note(episode: dict[str, Any]) -> None:
                on_join(episode)
                bar.update()

            _join(itertools.chain.from_iterable(map(_episodes, parts)), path, job, attributes, note)
    return path


def make_until(
    job: Job,
    steps: int,
    path: Path,
    *,
    attributes: Mapping[str, Any],
    on_join: Callable[[dict[str, Any]], object] = lambda episode: None,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Like `make_in_parts`, but makes as many episodes as the requested steps need; the last one is cut there.

    Args:
        job, attributes, on_join, overwrite, workers: see `make_in_parts`.
        steps: number of steps in the file.
        path: the file; it appears when it is complete.

    Raises:
        UserError: see `make_in_parts`.
    """
    with _folder_of_parts(path, overwrite) as folder:
        if folder is None:
            return path
        found = len(list(folder.glob("*.h5")))
        if found:
            print(f"resuming with {found} parts found in '{folder}'", flush=True)
        parts, left, firsts = [], steps, itertools.count(0, job.episodes_per_part)
        made = in_order(functools.partial(_make_or_find, job, folder), firsts, workers or available_cores(), ahead=1)
        with contextlib.closing(made), progress_bar(total=steps, desc="playing", unit="step") as bar:
            while left > 0:
                part, length = next(made)
                parts.append(part)
                left -= length
                bar.update(length)
        with progress_bar(total=steps, desc="joining", unit="step") as bar:

            def note(episode: dict[str, Any]) -> None:
                on_join(episode)
                bar.update(len(episode["rewards"]))

            _join(_cut(itertools.chain.from_iterable(map(_episodes, parts)), steps), path, job, attributes, note)
    return path


@contextlib.contextmanager
def _folder_of_parts(path: Path, overwrite: bool) -> Iterator[Path | None]:
    """The folder for a file's parts, locked for this process; None if another process has just made the file.

    It is removed at the end, but kept after an interruption or an error.
    """
    folder = path.with_name(f"{path.name}.parts")
    with making(path, overwrite=overwrite) as wanted:
        if not wanted:
            yield None
            return
        try:
            yield folder
        except KeyboardInterrupt:
            if folder.is_dir() and not any(folder.glob("*.h5")):
                shutil.rmtree(folder)
            elif folder.is_dir():
                print(f"Finished parts are kept in '{folder}'; run the same command to continue.", flush=True)
            raise
        shutil.rmtree(folder)


def _make_or_find(job: Job, folder: Path, first: int) -> tuple[Path, int]:
    """The part that starts with episode ``first``, made if missing, and its number of steps."""
    if not _is_done(job, folder, first, job.episodes_per_part):
        make_part(job, folder, (first, job.episodes_per_part))
    path = _part_path(folder, first // job.episodes_per_part)
    with TrajectoryFile(path) as file:
        return path, file.num_steps


def _cut(episodes: Iterator[dict[str, Any]], steps: int) -> Iterator[dict[str, Any]]:
    """Episodes up to ``steps`` steps; the one that exceeds them is cut there and has no end."""
    while steps > 0:
        episode = next(episodes)
        if len(episode["rewards"]) > steps:
            infos = {name: values[:steps] for name, values in episode["infos"].items()}
            kept = {name: episode[name][:steps] for name in ("observations", "actions", "rewards")}
            episode = {**kept, "terminal": False, "infos": infos, "unfinished": True}
        steps -= len(episode["rewards"])
        yield episode


def make_part(job: Job, folder: Path, task: tuple[int, int]) -> int:
    """Make the file of one part, given as (first episode, number of episodes); returns the latter."""
    first, count = task
    path = _part_path(folder, first // job.episodes_per_part)
    with TrajectoryWriter(path, **job.layout, attributes={_RECIPE: dict(job.recipe)}) as writer:
        job.play(writer, first, count)
    return count


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part_{part:05d}.h5"


def _is_done(job: Job, folder: Path, first: int, count: int) -> bool:
    """Whether a part exists, is complete and has this recipe."""
    with contextlib.suppress(UserError), TrajectoryFile(_part_path(folder, first // job.episodes_per_part)) as file:
        return file.attributes.get(_RECIPE) == dict(job.recipe) and file.num_episodes == count
    return False


def _episodes(part: Path) -> Iterator[dict[str, Any]]:
    """The episodes of a part, as arguments of `TrajectoryWriter.add_episode`."""
    with TrajectoryFile(part) as file:
        names, terminals = file.info_names(), file.column("terminals")
        for start, length in zip(file.starts.tolist(), file.lengths.tolist(), strict=True):
            stop = start + length
            observations, actions = file.read(start, stop)
            yield {
                "observations": observations,
                "actions": actions,
                "rewards": file.rewards[start:stop],
                "terminal": bool(terminals[stop - 1]),
                "infos": {name: file.column(f"infos/{name}", start, stop) for name in names},
                "unfinished": False,
            }


def _join(
    episodes: Iterator[dict[str, Any]],
    path: Path,
    job: Job,
    attributes: Mapping[str, Any],
    note: Callable[[dict[str, Any]], object],
) -> None:
    """Write episodes to one file, calling ``note`` before each."""
    with TrajectoryWriter(path, **job.layout, attributes=job.recipe) as writer:
        for episode in episodes:
            note(episode)
            writer.add_episode(**episode)
        writer.describe(attributes)
