"""Run one command for every combination of flag values and seeds, on this machine or on SLURM.

    python3 -m RATE_model.sweep "python3 TRAIN_SCRIPT --learning_rate {1e-4,3e-4}" --seeds 1-5
    python3 -m RATE_model.sweep --folder sweeps/NAME --status

Each command continues where it was interrupted (`--resume auto`), so the same call can be repeated at any time;
finished commands are left alone. See docs/clusters.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from RATE_model.cli.console import one_line
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import ArgumentParser, exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.sweep import folder as sweeps
from RATE_model.sweep.commands import check_files, seeds_of, short_name, split
from RATE_model.sweep.executors import run_locally, submit
from RATE_model.sweep.folder import STATES, Sweep

_LINES = 5  # of the log of a job that failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep, or print its status. Returns 1 if a job has failed."""
    with exit_on_user_error():
        arguments = parser().parse_args(argv)
        at_least(1, max_parallel=arguments.max_parallel)
        settings = _settings(arguments.slurm)
        if arguments.status:
            sweep = sweeps.load(arguments.folder or _usual_folder(arguments.command))
        else:
            place = arguments.folder or _usual_folder(arguments.command)
            check_files(arguments.command or "")
            sweep = sweeps.create(place, arguments.command or "", seeds_of(arguments.seeds))
            _run(sweep, arguments, settings)
        print(table(sweep))
        return 1 if any(sweep.state(job) == "failed" for job in sweep.jobs) else 0


def _run(sweep: Sweep, arguments: argparse.Namespace, settings: dict[str, str]) -> None:
    """Run or submit unfinished jobs."""
    print(
        f"{len(sweep.jobs)} commands in {sweep.folder}; for their status: python3 -m RATE_model.sweep --folder "
        f"{sweep.folder} --status",
        flush=True,
    )
    if arguments.executor == "local":
        try:
            run_locally(sweep, max_parallel=arguments.max_parallel, say=_say)
        except KeyboardInterrupt:
            print(f"{sweep.folder}: the same command continues this sweep", file=sys.stderr)
            raise
    else:
        submit(sweep, max_parallel=arguments.max_parallel, settings=settings, say=_say)


def table(sweep: Sweep) -> str:
    """One line per job, totals, and the last log lines of failed jobs."""
    states = {job: sweep.state(job) for job in sweep.jobs}
    width = max(len(job.name) for job in sweep.jobs)
    lines = []
    for job, state in states.items():
        record = sweep.record(job)
        attempts = f"{record.attempts} attempt{'s' * (record.attempts > 1)}"
        spent = f"{attempts}, {record.seconds / 60:.1f} min" if record.attempts else ""
        lines.append(f"{job.name:<{width}}  {state:<8} {spent}".rstrip())
        if state == "failed":
            lines += [f"    {one_line(line)}" for line in sweep.last_lines(job, _LINES)]
            lines.append(f"    (exit code {record.code}; full log: {sweep.log(job)})")
    counts = {state: list(states.values()).count(state) for state in STATES}
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts.items() if count)])


def _say(text: str) -> None:
    print(text, flush=True)


def _usual_folder(command: str | None) -> Path:
    """The default folder for a command: the script's name and a hash of the command."""
    if command is None:
        raise UserError("give a command in quotes, or the --folder of a sweep with --status")
    words = split(command)
    script = next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).name)
    return Path("sweeps") / short_name(script, command)


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE texts."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--slurm {pair}: must be KEY=VALUE, such as partition=gpu or timeout_min=240")
    return dict(pair.split("=", 1) for pair in pairs)


def parser() -> ArgumentParser:
    """The command line parser."""
    parser = ArgumentParser(prog="python3 -m RATE_model.sweep", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "command", nargs="?", help="in quotes; every combination of values in braces, such as {1e-4,3e-4}, is run"
    )
    parser.add_argument("--seeds", default="1", help="seeds of every combination, such as 1-5 or 1,3 (default: 1)")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where to run the commands")
    parser.add_argument("--max_parallel", type=int, default=1, help="parallel commands (default: 1)")
    parser.add_argument("--folder", type=Path, help="folder for logs and states (default: sweeps/SCRIPT-HASH)")
    parser.add_argument("--status", action="store_true", help="print the status of the sweep, and exit")
    parser.add_argument(
        "--slurm",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="settings for sbatch: partition=gpu timeout_min=240 ...",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
