"""One attempt at one job of a sweep: `python3 -m RATE_model.sweep.attempt FOLDER JOB`.

A separate process, so that its lock, its log and its final record do not depend on the process that started it. It
passes signals on to the command, which saves and stops. The command also stops if this process or its starter is
killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from RATE_model.cli.options import exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.sweep.commands import Job
from RATE_model.sweep.folder import Sweep, load
from RATE_model.system.interrupts import exit_code, signal_name
from RATE_model.system.locks import LockHeld, hold

_STOP_SECONDS = 60.0  # time for a command to save and stop
_POLL_SECONDS = 0.2
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux


class Attempt:
    """Runs one job; also what `submitit` runs on a cluster node."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command; returns its exit code, or minus the signal that killed it. Raises UserError if the job is
        already running."""
        sweep = load(self.folder)
        job = next((job for job in sweep.jobs if job.name == self.name), None)
        if job is None:
            raise UserError(f"{self.folder} has no job {self.name}")
        sweep.place(job).mkdir(parents=True, exist_ok=True)
        try:
            with hold(sweep.lock(job)):
                return self._run(sweep, job)
        except LockHeld as by:
            raise UserError(f"{self.name} is already run by {by}") from None

    def _run(self, sweep: Sweep, job: Job) -> int:
        record, started = sweep.record(job), time.monotonic()
        if record.code == 0:  # finished while this attempt was queued
            return 0
        record.attempts, record.code = record.attempts + 1, None
        sweep.write(job, record)
        with _after_the_last(sweep.place(job) / ".running") as running, open(sweep.log(job), "ab", 0) as log:
            log.write(f"--- attempt {record.attempts}: {' '.join(job.words)}\n".encode())
            try:
                self._process = subprocess.Popen(
                    job.words,
                    cwd=sweep.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=end_with_parent(),
                    pass_fds=[running.fileno()],
                )
            except OSError as error:
                log.write(f"error: {job.words[0]} cannot be started: {error.strerror}\n".encode())
                code = 2
            else:
                code = self._wait(self._process)
        record.code, record.seconds = code, record.seconds + time.monotonic() - started
        sweep.write(job, record)
        return code

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait until the command ends. Signals are passed on to it and determine the exit code."""
        try:
            while process.poll() is None:  # not `wait`, so `checkpoint` can wait too
                time.sleep(_POLL_SECONDS)
            return process.returncode
        except KeyboardInterrupt as interruption:
            self.stop(exit_code(interruption) - 128)
            return exit_code(interruption)

    def stop(self, number: int) -> None:
        """Signal the command to save and stop."""
        process, deadline = self._process, time.monotonic() + _STOP_SECONDS
        if process is None:
            return
        process.send_signal(number)
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(_POLL_SECONDS)

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by `submitit` before the cluster takes the node away: stop, and queue the job again."""
        import submitit

        self.stop(signal.SIGUSR2)
        return submitit.helpers.DelayedSubmission(Attempt(self.folder, self.name))


def _after_the_last(path: Path) -> Any:
    """An open file, inherited by commands, that stays locked while any of them is alive.

    A killed attempt's command may still be saving: the next attempt starts after it.
    """
    file = open(path, "ab")
    with suppress(ImportError, OSError):  # a file system without locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def end_with_parent() -> Callable[[], None] | None:
    """For a new process: sends it SIGTERM when its parent dies for any reason. Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PARENT_DIED, signal.SIGTERM)
        if os.getppid() != parent:  # it has already died
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def main() -> int:
    """Run one attempt; returns the command's exit code."""
    with exit_on_user_error():
        folder, name = sys.argv[1:]
        try:
            code = Attempt(Path(folder), name)()
        except KeyboardInterrupt as interruption:
            print(f"stopped by {signal_name(interruption)}", file=sys.stderr)
            return exit_code(interruption)
        return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
