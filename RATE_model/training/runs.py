"""Run directories, interruption, and several seeds in one command.

<run>/config.yaml        the value of every flag, readable by --config
      environment.json   one entry per start: commit, versions, command line, threads; a damaged file is kept as
                         environment.damaged.json
      metrics.jsonl      see tracking.py
      checkpoints/       see checkpoints.py
      eval/*.json  plots/*.png
      traceback.txt      of an unexpected error
      .lock              while a process owns the run: see `RATE_model.system.locks`
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.console import machine_error, one_line
from RATE_model.cli.core_yaml import CoreLoader
from RATE_model.cli.options import load_yaml, to_yaml
from RATE_model.errors import RunError, UserError, error_reason
from RATE_model.system import distributed
from RATE_model.system.atomic import atomic_write_json, atomic_write_text
from RATE_model.system.interrupts import exit_code, signal_name
from RATE_model.system.locks import LockHeld, clear_leftovers, hold, how_to_stop, owner
from RATE_model.training.checkpoints import (
    find_checkpoint,
    has_checkpoints,
    load_checkpoint,
    resolve_checkpoint,
    run_of,
)
from RATE_model.training.continuing import resuming
from RATE_model.training.tracking import check_wandb, redact

_TRACEBACK, _LOCK, _DAMAGED = "traceback.txt", ".lock", "environment.damaged.json"
_CONTENTS = ("config.yaml", "environment.json", _DAMAGED, "metrics.jsonl", "timing.jsonl", "wandb_id", _TRACEBACK)
_FOLDERS = ("checkpoints", "eval", "plots")
# Files of a start that are not results.
_BEGINNING = {"config.yaml", "environment.json", _DAMAGED, "wandb_id", _TRACEBACK}
_NAME_BYTES = 200  # maximum length of a run's name; file systems allow 255
_SEEN_SECONDS = 15.0  # time for a network file system to show files made by another machine


class FinishedRun(UserError):
    """The run has finished with these flags and has no intact checkpoint: nothing to do, its results stand."""

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(message)
        self.directory = directory


@dataclass(frozen=True)
class Run:
    """A run's directory and starting point. Once open, its directory exists, with config.yaml and environment.json."""

    directory: Path
    seed: int
    checkpoint: Path | None
    """The checkpoint to continue from; None starts from scratch."""
    choose: Callable[[], tuple[Path | None, tuple[str, ...]]] = field(repr=False, compare=False)
    """Checkpoint and changes as of now; raises UserError if the run can no longer be started or continued."""
    changed: tuple[str, ...] = ()
    """How it differs from the run that is continued under another name, one phrase each."""

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.directory / "plots"

    def write_evaluation(self, name: str, result: dict[str, Any]) -> Path:
        """Write eval/<name>.json atomically, with null for non-finite numbers, and return its path.

        Raises UserError if it cannot be written.
        """
        path = self.directory / "eval" / f"{name}.json"
        try:
            if distributed.is_first():
                atomic_write_json(path, result)
        except OSError as error:
            reason = f"{path} cannot be written: {error_reason(error)}"
            raise UserError(f"{reason}; everything saved before is kept, continue with --resume auto") from error
        return path


def check_run(
    directory: Path,
    *,
    config: dict[str, Any],
    seed: int,
    resume: str = "no",
    overwrite: bool = False,
    may_change: Iterable[str] = (),
    may_grow: Iterable[str] = ("epochs",),
    may_change_elsewhere: Iterable[str] = (),
    before: Mapping[str, Any] | None = None,
) -> Run:
    """Check the run in ``directory``, new or continued, for `open_run`; ``config`` comes from options.to_flat_dict.

    ``resume``: "no" starts from scratch; "auto" continues from the newest intact checkpoint if there is one; a path (a
    run or a checkpoint, of this directory or another) continues from there. A continued run must have its original
    configuration, except for the keys in ``may_change``, those that start with ``wandb_``, and those in ``may_grow``,
    whose value may increase. Keys in ``may_change_elsewhere`` may also differ if the run continues in another
    directory; environment.json records the change. ``before`` gives the values of keys for runs made before these keys
    existed.

    Nothing is created, changed or removed, so that data can be checked before a run is opened. Raises UserError if
    another process owns the run, if the directory already contains a run and neither resume nor overwrite is given, if
    there is nothing intact to resume (FinishedRun if there is nothing left to do either), if the configuration differs,
    or if the directory is not writable.
    """
    if (by := owner(directory / _LOCK)) is not None:
        raise UserError(_in_use_message(directory, by))
    choose = functools.partial(
        _choose_start,
        directory,
        config=config,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        may_change=frozenset(may_change),
        may_grow=frozenset(may_grow),
        may_change_elsewhere=frozenset(may_change_elsewhere),
        before=before or {},
        last_start=_last_start(directory),
    )
    checkpoint, changed = choose(say=True)
    return Run(directory, seed, checkpoint, choose, changed)


def _choose_start(
    directory: Path,
    *,
    config: dict[str, Any],
    seed: int,
    resume: str,
    overwrite: bool,
    may_change: frozenset[str],
    may_grow: frozenset[str],
    may_change_elsewhere: frozenset[str],
    before: Mapping[str, Any],
    last_start: dict[str, Any] | None,
    say: bool = False,
) -> tuple[Path | None, tuple[str, ...]]:
    """Checkpoint and changes of `check_run`; ``last_start`` is that of the run to be overwritten."""
    if any(len(os.fsencode(part)) > 255 for part in directory.parts):  # not detected below if a parent is missing
        raise UserError(f"the run directory {directory} cannot be created: a name in it is longer than 255 bytes")
    try:
        existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    except OSError as error:  # the path is too long, or a directory may not be entered
        raise UserError(f"the run directory {directory} cannot be created: {error.strerror or error}") from None
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "not writable" if existing.is_dir() else "not a directory"
        raise UserError(f"the run directory {directory} cannot be written: {existing} is {reason}")
    check_wandb(config.get("wandb_mode", "auto"))
    recorded = redact(to_yaml(config))
    new = yaml.load(recorded, Loader=CoreLoader) | {"seed": seed}
    try:
        checkpoint = _choose_checkpoint(directory, resume=resume, overwrite=overwrite)
    except UserError as error:
        if resume == "auto" and not overwrite and _has_finished(directory, new, may_change=may_change, before=before):
            raise FinishedRun(str(error), directory) from None
        raise
    changed: tuple[str, ...] = ()
    if checkpoint is not None:
        origin = run_of(checkpoint)
        old = {**before, **_original_config(checkpoint, seed, may_change | may_grow, say=say)}
        differing = _differences(old, new, may_change=may_change, may_grow=may_grow)
        allowed = _differences(old, new, may_change=may_change | may_change_elsewhere, may_grow=may_grow)
        if origin.resolve() != directory.resolve():
            changed, differing = tuple(phrase for phrase in differing if phrase not in allowed), allowed
        if differing:
            new_name = "" if allowed else f", or continue it there with --resume {origin} and these values"
            raise UserError(
                f"{origin} cannot be resumed with a different configuration: {'; '.join(differing)}. Use the same "
                f"values, or start a new run with another --text or --ckpt_folder{new_name}"
            )
    if overwrite and _last_start(directory) != last_start:
        raise UserError(f"{directory} was started by another command in the meantime and is kept; check it first")
    return checkpoint, changed


def _has_finished(
    directory: Path, config: dict[str, Any], *, may_change: frozenset[str], before: Mapping[str, Any]
) -> bool:
    """Whether a run's files show that it finished with these flags and this seed."""
    with suppress(UserError):
        found = canonical_flags(load_yaml(directory / "config.yaml"))
        old = {**before, **found, "seed": _seed_of(directory, default=config["seed"])}
        differing = _differences(old, config, may_change=may_change, may_grow=frozenset())
        return not differing and (directory / "eval" / "final.json").is_file()
    return False


def _original_config(checkpoint: Path, seed: int, may_change: frozenset[str], *, say: bool) -> dict[str, Any]:
    """The flags and seed of a checkpoint's run: from the checkpoint or, for older ones, from the run's files.

    Warns if config.yaml is missing, damaged or different; a continued run writes it again.
    """
    path = run_of(checkpoint) / "config.yaml"
    state = load_checkpoint(checkpoint)[1]
    flags = state.get("flags")
    held: dict[str, Any] = flags if isinstance(flags, dict) else {}
    try:
        found, trouble = canonical_flags(load_yaml(path)), ""
    except UserError as error:
        if not held:
            raise
        found, trouble = {}, str(error)
    held = canonical_flags(dict(held))
    if say and (
        other := sorted(name for name, value in held.items() if name not in may_change and found.get(name) != value)
    ):
        trouble = trouble or f"{path}: {other[0]} differs from the checkpoint"
        print(one_line(f"warning: {trouble}; using the configuration in {checkpoint}"), file=sys.stderr)
    recorded_seed = state.get("seed", _seed_of(run_of(checkpoint), default=seed))
    return {**found, **held, "seed": recorded_seed}


@contextmanager
def open_run(run: Run, *, config: dict[str, Any]) -> Iterator[Run]:
    """Own the directory of a checked run: create or clear it, and record this start.

    Yields the run as it is now: another process may have used it since the check. With several processes, process 0
    owns it and the others must see it. An error inside belongs to this run: a `UserError` becomes a `RunError`, and the
    traceback of any other error is kept in the directory.

    Raises UserError if another process owns the run or the directory is not writable; RunError if the run can no longer
    be started or continued.
    """
    directory = run.directory
    with ExitStack() as stack:
        if distributed.is_first():
            try:
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold(directory / _LOCK))
            except LockHeld as by:
                raise UserError(_in_use_message(directory, str(by))) from None
            except OSError as error:
                raise UserError(
                    f"the run directory {directory} cannot be written: {error.strerror or error}"
                ) from error
        try:
            checkpoint, changed, owned = distributed.run_on_first(lambda: _begin(run, config))
            _check_seen(directory, owned)
            yield replace(run, checkpoint=checkpoint, changed=changed)
        except RunError:
            raise
        except UserError as error:
            raise RunError(str(error)) from error
        except Exception as error:
            if machine_error(error):
                raise
            with suppress(OSError):
                atomic_write_text(directory / _TRACEBACK, traceback.format_exc())
                error.add_note(f"the traceback is in {directory / _TRACEBACK}")
            raise


def _begin(run: Run, config: dict[str, Any]) -> tuple[Path | None, tuple[str, ...], str]:
    """Prepare the directory of an owned run; returns its current checkpoint, changes and lock content."""
    checkpoint, changed = run.choose()
    _prepare(replace(run, checkpoint=checkpoint, changed=changed), config)
    return checkpoint, changed, (run.directory / _LOCK).read_text()


def _check_seen(directory: Path, owned: str) -> None:
    """Raise `UserError` in all processes if one of them does not see the run directory of process 0."""

    def seen() -> bool:
        with suppress(OSError):
            return (directory / _LOCK).read_text() == owned
        return False

    deadline = time.monotonic() + _SEEN_SECONDS
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.2)
    if blind := [number for number, sees in enumerate(distributed.gather(seen())) if not sees]:
        raise UserError(
            f"process {blind[0]} does not see the run directory {directory} opened by process 0: give an "
            "--output_dir on a disk that all machines share"
        )


def check_unowned(**places: Path | None) -> None:
    """Raise `UserError` for the first flag that names a place in a run owned by another process."""
    for name, place in places.items():
        for directory in () if place is None else (place.absolute(), *place.absolute().parents):
            if directory.is_dir() and (by := owner(directory / _LOCK)) is not None:
                raise UserError(
                    f"--{name} {place}: {directory} is in use by {by}; {_free(directory)}, or give another place"
                )


@contextmanager
def owning(place: Path) -> Iterator[None]:
    """Own the run that contains a file, if any, while the file is written; waits for another owner."""
    with ExitStack() as stack:
        for directory in place.absolute().parents:
            if (directory / "checkpoints").is_dir():
                waiting = f"{directory} is in use by another process; waiting for it before '{place}' is written"
                stack.enter_context(hold(directory / _LOCK, waiting=waiting))
        yield


def _free(directory: Path) -> str:
    """How to free a run that another process owns."""
    return f"wait for it or stop it{how_to_stop(directory / _LOCK)}"


def _in_use_message(directory: Path, by: str) -> str:
    return (
        f"{directory} is in use by {by}: {_free(directory)}, or start another run with another --text or --ckpt_folder"
    )


def _prepare(run: Run, config: dict[str, Any]) -> None:
    """See `open_run`."""
    directory = run.directory
    try:
        for folder in (directory, *(directory / name for name in _FOLDERS)):
            clear_leftovers(folder)
        origin = None if run.checkpoint is None else run_of(run.checkpoint)
        elsewhere = origin is not None and origin.resolve() != directory.resolve()
        if origin is None or elsewhere:
            _clear(directory)
        for folder in _FOLDERS:
            (directory / folder).mkdir(parents=True, exist_ok=True)
        if origin is not None and elsewhere and (origin / "metrics.jsonl").exists():
            shutil.copyfile(origin / "metrics.jsonl", directory / "metrics.jsonl")  # its history is this run's too
        atomic_write_text(directory / "config.yaml", redact(to_yaml(config)))
        _rename_damaged_record(directory)
        _record_start(directory, run.seed, resumed_from=origin if origin != directory else None, changed=run.changed)
    except OSError as error:
        raise UserError(f"the run directory {directory} cannot be written: {error.strerror or error}") from error


def run_name(text: str, *parts: object) -> str:
    """The text and the non-empty parts, joined by underscores, as a directory name.

    Characters that are problematic for file systems or shells become hyphens. A text that is too long is cut and gets a
    short hash.
    """

    def joined(text: str) -> str:
        return clean_name("_".join(str(part) for part in (text, *parts) if str(part)))

    name, kept = joined(text), text
    mark = "-" + short_hash(text)
    while len(name.encode()) > _NAME_BYTES and kept:
        kept = kept[:-1]
        name = joined(kept + mark)
    if not name:
        raise UserError(f"'{text}' is not a valid name for a run: use letters and digits")
    return name


def clean_name(text: str) -> str:
    """Replace everything but letters, digits and . + = - _ by hyphens; the result can start a file name."""
    return re.sub(r"[^\w.+=-]+", "-", text).lstrip(".-")


def short_hash(value: object) -> str:
    """Eight hexadecimal digits that identify a plain value, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def run_seeds(runs: Sequence[Run], train: Callable[[Run], object], *, command: Sequence[str] = ()) -> int:
    """Call ``train(run)`` for every run, one per seed, and return the command's exit code.

    An exception in one seed is reported in one line on stderr and the others continue; a final line sums up and the
    exit code is 1. A UserError in the first seed is raised, unless it is a RunError, because it would affect every
    seed. A signal stops everything with exit code 128 + its number; a line names the run and how to continue it, by
    ``command``, the words that started this process. With several processes every error is raised, because a process
    does not know what has failed in another.
    """
    failed: dict[int, str] = {}
    for position, run in enumerate(runs):
        seed = run.seed
        try:
            train(run)
        except KeyboardInterrupt as interruption:
            if distributed.is_first():
                stopped = f"{run.directory}: seed {seed} stopped by {signal_name(interruption)}"
                print(one_line(f"{stopped}; continue with {_how_to_continue(run, command)}"), file=sys.stderr)
            return exit_code(interruption)
        except UserError as error:
            if len(runs) == 1 or distributed.size() > 1 or (position == 0 and not isinstance(error, RunError)):
                raise
            failed[seed] = f"seed {seed} failed: {error}"
        except Exception as error:
            reason = machine_error(error)
            if distributed.size() > 1:
                raise
            if reason is None:
                notes = getattr(error, "__notes__", [])
                if not notes:  # it came before the run had a directory for the traceback
                    traceback.print_exc()
                reason = "; ".join([f"{type(error).__name__}: {error}", *notes])
            failed[seed] = f"seed {seed} failed: {reason}"
        if seed in failed:
            print(one_line(failed[seed]), file=sys.stderr)
    if failed:
        names = ", ".join(map(str, failed))
        print(f"{len(runs) - len(failed)} of {len(runs)} seeds finished; failed: {names}", file=sys.stderr)
    return 1 if failed else 0


def _how_to_continue(run: Run, command: Sequence[str]) -> str:
    """The command that continues a stopped run, or only the flag if the command is not known."""
    if not command or distributed.size() > 1:  # torchrun's own flags are not known
        return "--resume auto"
    return redact(shlex.join(resuming(command)))


def _choose_checkpoint(directory: Path, *, resume: str, overwrite: bool) -> Path | None:
    """The checkpoint to continue from, or None to start; raises UserError if that would destroy a run."""
    held = _list_content(directory)
    if overwrite and resume != "no":
        raise UserError(f"--overwrite true and --resume {resume} are mutually exclusive; give one of them")
    if resume == "auto":
        checkpoint = find_checkpoint(directory / "checkpoints")
        if checkpoint is None and has_checkpoints(directory / "checkpoints"):
            raise UserError(f"{directory} has only damaged checkpoints; start it again with --overwrite true")
        if checkpoint is None and not _has_died_early(held):
            raise UserError(
                f"{directory} contains {_enumerate(held)} but no checkpoint to continue from: start another run with "
                "another --text or --ckpt_folder, or replace it with --overwrite true"
            )
        return checkpoint
    checkpoint = None if resume == "no" else resolve_checkpoint(Path(resume))
    if checkpoint is not None and run_of(checkpoint).resolve() == directory.resolve():
        return directory / "checkpoints" / checkpoint.name
    if held and not overwrite:
        raise UserError(
            f"{directory} already contains {_enumerate(held)}: continue that run with --resume auto, replace it with "
            "--overwrite true, or start another with another --text or --ckpt_folder"
        )
    return checkpoint


def _list_content(directory: Path) -> list[str]:
    """What `_clear` would remove, in words, except for what every start and interrupted saves leave."""
    held = ["a checkpoint"] if has_checkpoints(directory / "checkpoints") else []
    files = [directory / name for name in _CONTENTS if name not in _BEGINNING]
    files += directory.glob("crash_step_*.json")
    held += [path.name for path in files if path.is_file() and path.stat().st_size]
    for folder in ("eval", "plots", "wandb"):
        inside = sorted(path for path in (directory / folder).rglob("*") if path.is_file())
        held += [str(path.relative_to(directory)) for path in inside if not path.name.startswith(".")]
    return held


def _has_died_early(held: list[str]) -> bool:
    """Whether a directory contains only the remains of a start that died before its first checkpoint.

    A run evaluates once before that.
    """
    own = ("metrics.jsonl", "timing.jsonl", "crash_step_", "wandb")
    results = [name for name in held if not name.startswith(own)]
    return len(results) <= 1 and all(re.match(r"eval.epoch_\d+", name) for name in results)


def _enumerate(held: list[str]) -> str:
    return ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")


def _differences(
    old: dict[str, Any], new: dict[str, Any], *, may_change: frozenset[str], may_grow: frozenset[str]
) -> list[str]:
    """One phrase for each key that differs but may not."""
    differing = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now or key in may_change or key.startswith("wandb_"):
            continue
        if key in may_grow and isinstance(before, int) and isinstance(now, int):
            if now < before:
                differing.append(f"{key} was {before} and may only grow, now {now}")
        else:
            differing.append(f"{key} was {before}, now {now}")
    return differing


def _clear(directory: Path) -> None:
    """Remove everything left by an earlier run, and nothing else."""
    for name in _CONTENTS:
        (directory / name).unlink(missing_ok=True)
    for path in directory.glob("crash_step_*.json"):
        path.unlink()
    for name in (*_FOLDERS, "wandb"):
        if (directory / name).is_dir():
            shutil.rmtree(directory / name)


def _seed_of(directory: Path, *, default: int) -> int:
    starts = _starts(directory)
    return starts[-1].get("seed", default) if starts else default


def _last_start(directory: Path) -> dict[str, Any] | None:
    """The record of the last start, which identifies it."""
    return next(reversed(_starts(directory)), None)


def _starts(directory: Path) -> list[dict[str, Any]]:
    """The records of a run's starts; empty if the file is missing or damaged."""
    try:
        starts = json.loads((directory / "environment.json").read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) and all(isinstance(start, dict) for start in starts) else []


def _rename_damaged_record(directory: Path) -> None:
    """Rename an unreadable environment.json, with a warning: this start writes a new one."""
    path = directory / "environment.json"
    if path.exists() and not _starts(directory):
        os.replace(path, directory / _DAMAGED)
        print(f"warning: {path} is damaged; kept as {_DAMAGED} and replaced by a new one", file=sys.stderr)


def _record_start(directory: Path, seed: int, *, resumed_from: Path | None = None, changed: Sequence[str] = ()) -> None:
    """Add this start to environment.json. Neither the host name nor a wandb key is recorded."""
    import torch  # late, so that code that only names runs need not wait for it

    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        **({"resumed_from": str(resumed_from), "changed": list(changed)} if resumed_from else {}),
        "command": [redact(argument) for argument in sys.argv],
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": _versions(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    atomic_write_text(
        directory / "environment.json", json.dumps({"starts": [*_starts(directory), start]}, indent=2) + "\n"
    )


def _versions() -> dict[str, str]:
    """Versions of the packages that this project or any environment may use, where installed."""
    names = {"torch", "numpy", "gymnasium", "h5py", "safetensors", "tyro", "wandb"}
    try:
        required = importlib.metadata.requires("rate-memory") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        required = []
    names |= {
        re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required if "extra == 'dev'" not in text.replace('"', "'")
    }
    versions = {}
    for name in sorted(names - {"rate-memory"}):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_state() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
