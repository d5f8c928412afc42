"""A sweep's folder: its commands and their progress, for any number of processes that work or watch.

<folder>/sweep.json         the command, the seeds and where it was started
         jobs/NAME/log.txt  the output of all attempts at the command
                   state.json   attempts, and how the last one ended
                   .lock    while an attempt runs, on this machine or another
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from RATE_model.errors import UserError
from RATE_model.sweep.commands import Job, jobs_of
from RATE_model.system.atomic import atomic_write_json
from RATE_model.system.interrupts import SIGNAL_CODES
from RATE_model.system.locks import owner

# waiting: not started yet; stopped: killed or interrupted, will continue.
State = Literal["done", "running", "failed", "stopped", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "failed", "stopped", "waiting")
_LAST_BYTES = 20_000


@dataclass
class Record:
    """The record of a job's attempts."""

    attempts: int = 0
    code: int | None = None  # exit code of the last attempt, or minus a signal; None while it runs, or if it died
    seconds: float = 0.0  # of all attempts
    submitted: str = ""  # the cluster's id of a submitted job


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep, and their folder."""

    folder: Path
    directory: Path  # where commands are run
    jobs: list[Job] = field(repr=False)

    def place(self, job: Job) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / job.name

    def lock(self, job: Job) -> Path:
        """The lock held while an attempt runs."""
        return self.place(job) / ".lock"

    def log(self, job: Job) -> Path:
        """The output of its attempts."""
        return self.place(job) / "log.txt"

    def record(self, job: Job) -> Record:
        """The record of its attempts; empty if it was never started."""
        try:
            return Record(**json.loads((self.place(job) / "state.json").read_text()))
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.place(job) / 'state.json'} is damaged ({error}); delete it to start over") from None

    def write(self, job: Job, record: Record) -> None:
        """Save a record."""
        self.place(job).mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.place(job) / "state.json", vars(record))

    def state(self, job: Job) -> State:
        """The state of a job."""
        if owner(self.lock(job)) is not None:
            return "running"
        record = self.record(job)
        if not record.attempts:
            return "waiting"
        if record.code is None or record.code < 0 or record.code in SIGNAL_CODES:
            return "stopped"
        return "failed" if record.code else "done"

    def last_lines(self, job: Job, count: int) -> list[str]:
        """The end of its log."""
        try:
            with open(self.log(job), "rb") as file:
                file.seek(max(0, self.log(job).stat().st_size - _LAST_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def create(folder: Path, command: str, seeds: Sequence[int]) -> Sweep:
    """The sweep in a folder, new or existing; more seeds may be added to an existing one.

    Raises:
        UserError: the folder has the sweep of another command, or cannot be written, or see `jobs_of`.
    """
    jobs_of(command, seeds)
    before = _read(folder) if (folder / "sweep.json").exists() else None
    if before is not None and before["command"] != command:
        raise UserError(f"{folder} has the sweep of another command, {before['command']}; give another --folder")
    known = before["seeds"] if before else []
    content = {
        "command": command,
        "seeds": [*known, *(seed for seed in seeds if seed not in known)],
        "directory": before["directory"] if before else str(Path.cwd()),
    }
    if content != before:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(folder / "sweep.json", content)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}; give another --folder") from None
    return load(folder)


def load(folder: Path) -> Sweep:
    """The sweep in a folder. Raises UserError if there is none."""
    content = _read(folder)
    return Sweep(folder, Path(content["directory"]), jobs_of(content["command"], content["seeds"]))


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text())
        return {name: content[name] for name in ("command", "seeds", "directory")}
    except FileNotFoundError:
        raise UserError(f"{folder} has no sweep; give its --folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); give another --folder") from None
