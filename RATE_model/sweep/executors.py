"""Run the jobs of a sweep in processes of this machine, or on SLURM."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from RATE_model.errors import UserError
from RATE_model.sweep.attempt import Attempt, end_with_parent
from RATE_model.sweep.commands import Job
from RATE_model.sweep.folder import Sweep
from RATE_model.system.packages import extra, needed

MAX_ATTEMPTS = 20
"""Maximum attempts per call at a job that keeps being killed."""
_POLL_SECONDS = 0.2
_SIGNAL_SECONDS = 90  # before the cluster takes a node away
_MAX_TIMEOUTS = 1000  # after each timeout the job is queued again
# Settings with the same name for all clusters in submitit; others are prefixed with the cluster's name.
_SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")


def run_locally(sweep: Sweep, *, max_parallel: int, say: Callable[[str], None]) -> None:
    """Run all jobs that are not done, at most this many at once, until each is done or has failed.

    A job that was killed or stopped goes back to the end of the queue. Jobs run by other processes are only watched. If
    this process is signalled to stop, all jobs save and stop.
    """
    waiting = [job for job in sweep.jobs if sweep.state(job) != "done"]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    begun: dict[Job, int] = {}
    try:
        while waiting or running:
            for job, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[job]
                state = sweep.state(job)
                say(f"{job.name}: {state}")
                if state not in ("done", "failed") and begun[job] < MAX_ATTEMPTS:
                    waiting.append(job)
            for job in waiting[: max_parallel - len(running)] if len(running) < max_parallel else []:
                waiting.remove(job)
                if (state := sweep.state(job)) == "done":
                    continue
                if state == "running":  # by another process
                    waiting.append(job)
                    continue
                begun[job] = begun.get(job, 0) + 1
                running[job] = _started(sweep, job)
                say(f"{job.name}: started" if begun[job] == 1 else f"{job.name}: continued")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise


def _started(sweep: Sweep, job: Job) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "RATE_model.sweep.attempt", str(sweep.folder.absolute()), job.name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent(), start_new_session=True)


def submit(
    sweep: Sweep, *, max_parallel: int, settings: Mapping[str, str], say: Callable[[str], None], cluster: str = "slurm"
) -> None:
    """Submit all jobs that are neither done nor submitted, as one array of at most this many at once.

    Args:
        sweep, max_parallel: the sweep, and the maximum number of parallel jobs.
        settings: for `sbatch`, such as partition, time (minutes), gpus_per_node, cpus_per_task, mem_gb.
        say: called with a message about every job.
        cluster: for `submitit`; "local" for tests without SLURM.

    Raises:
        UserError: submitit or SLURM is missing, or SLURM refuses the settings.
    """
    sentence = "--executor slurm: submitit is missing; install it with"
    submitit = needed(sentence, "submitit", install=extra("cluster"))
    logs = sweep.folder / "slurm"

    def is_queued(job: Job) -> bool:
        number = sweep.record(job).submitted
        return bool(number) and not submitit.SlurmJob(logs, number).done()  # even if SLURM does not know it yet

    jobs = [job for job in sweep.jobs if sweep.state(job) not in ("done", "running") and not is_queued(job)]
    if not jobs:
        return
    try:
        executor = submitit.AutoExecutor(logs, cluster=cluster, slurm_max_num_timeout=_MAX_TIMEOUTS)
        executor.update_parameters(**_parameters(settings, max_parallel))
        with executor.batch():
            submitted = [executor.submit(Attempt(sweep.folder.absolute(), job.name)) for job in jobs]
    except (RuntimeError, ValueError, TypeError, AssertionError, NameError, OSError) as error:  # all from submitit
        raise UserError(f"--executor slurm: {' '.join(str(error).split())[:300]}") from None
    for job, entry in zip(jobs, submitted, strict=True):
        record = sweep.record(job)
        record.submitted = entry.job_id
        sweep.write(job, record)
        say(f"{job.name}: submitted as {entry.job_id}")


def _parameters(settings: Mapping[str, str], max_parallel: int) -> dict[str, Any]:
    """Settings under submitit's names."""
    named = {name if name in _SHARED else f"slurm_{name}": _number(value) for name, value in settings.items()}
    return {"slurm_array_parallelism": max_parallel, "slurm_signal_delay_s": _SIGNAL_SECONDS, **named}


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
