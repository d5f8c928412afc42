"""Sweeps: their commands, that each finishes exactly once despite kills, and their status."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from RATE_model.errors import UserError
from RATE_model.sweep import folder as sweeps
from RATE_model.sweep.__main__ import main, table
from RATE_model.sweep.attempt import Attempt
from RATE_model.sweep.commands import Job, jobs_of, seeds_of
from RATE_model.sweep.executors import run_locally, submit
from RATE_model.sweep.folder import Sweep

# A command that takes steps and continues where it was interrupted, with one line per step in the file named by --text.
# It does not end while its file `hold` exists.
STEPS = 20
SCRIPT = f"""
import pathlib, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
done = pathlib.Path(f"{{flags['--text']}}_{{flags['--seed']}}.steps")
if flags.get("--fails") == "yes":
    sys.exit("no such file")
while (steps := len(done.read_text().splitlines()) if done.exists() else 0) < {STEPS}:
    time.sleep(0.05)
    with done.open("a") as file:
        file.write("step\\n")
while done.with_suffix(".hold").exists():
    time.sleep(0.05)
print("finished")
"""


@pytest.fixture
def command(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    return f"{sys.executable} -S script.py --rate {{0.1,0.2}}"


def made(command: str, seeds: str = "1-2", folder: str = "sweep") -> Sweep:
    return sweeps.create(Path(folder), command, seeds_of(seeds))


def names(sweep: Sweep) -> list[str]:
    return [job.name for job in sweep.jobs]


def finished(sweep: Sweep) -> list[int]:
    """How often each job has finished."""
    return [sweep.log(job).read_text().count("finished") for job in sweep.jobs]


def test_commands_are_expanded_as_typed():
    jobs = jobs_of("python3 a.py --learning_rate {1e-4,3e-4} --text mine --arch={x,y}", [1, 2])
    assert len(jobs) == 8 and len({job.name for job in jobs}) == 8
    assert jobs[1] == Job(
        "learning_rate=1e-4_arch=x_seed=2",
        tuple(
            "python3 a.py --learning_rate 1e-4 --text mine_learning_rate=1e-4_arch=x --arch=x "
            "--seed 2 --resume auto".split()
        ),
    )
    (alone,) = jobs_of("python3 a.py --flag 1", [3])
    assert alone == Job("seed=3", tuple("python3 a.py --flag 1 --seed 3 --resume auto".split()))
    (joined,) = jobs_of("python3 a.py --text=mine --lr {1,2}", [3])[1:]
    assert joined.words[2:6] == ("--text", "mine_lr=2", "--lr", "2")


def test_seeds():
    assert seeds_of("1-3,7") == [1, 2, 3, 7] and seeds_of("0") == [0]


@pytest.mark.parametrize("text", ["", "a", "3-1", "1..5", "-1", "1-99999999"])
def test_invalid_seeds_are_refused(text):
    with pytest.raises(UserError, match=f"--seeds {text}"):
        seeds_of(text)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "a command is missing"),
        ("a 'b", "cannot be read"),
        ("a --seed 1", "--seed: set by the sweep"),
        ("a --resume=auto", "--resume: set by the sweep"),
        ("a --start-seed 1", "--start_seed: set by the sweep"),
        ("a --x {1,1}", "duplicate value in braces"),
        ("a --x {1,2", "write values in braces"),
        ("a --x {1, 2}", "write values in braces"),
        ("a --x {1,2} --text", "--text: the value is missing"),
        ("a --x {1,2,3,4,5,6,7,8,9,0}" * 5, "makes 100000 commands; at most 10000"),
    ],
)
def test_invalid_commands_are_refused(command, words):
    with pytest.raises(UserError, match=words):
        jobs_of(command, [1])


def test_jobs_run_exactly_once(command, capsys):
    flags = [command, "--seeds", "1-2", "--max_parallel", "4", "--folder", "sweep"]
    assert main(flags) == main(flags) == 0
    sweep = made(command)
    assert finished(sweep) == [1] * 4 and capsys.readouterr().out.count("started") == 4
    assert main(["--status", "--folder", "sweep"]) == 0
    assert "rate=0.1_seed=1  done     1 attempt," in (said := capsys.readouterr().out) and said.endswith("4 done\n")
    assert main([*flags[:2], "1-3", *flags[3:]]) == 0  # another seed
    assert finished(made(command, "1-3")) == [1] * 6


def test_late_attempt_does_nothing(command):
    """It was queued on a cluster while the job was done here."""
    sweep = made(command, "1")
    run_locally(sweep, max_parallel=2, say=lambda text: None)
    assert [Attempt(sweep.folder, name)() for name in names(sweep)] == [0, 0]
    assert finished(sweep) == [1, 1]


def test_killed_jobs_continue_and_finish_once(command):
    sweep, said, killed = made(command), [], []

    def kill() -> None:
        """Kill half of the jobs: the command or its attempt process."""
        for job in sweep.jobs[::2]:
            kind = "script.py" if job is sweep.jobs[0] else "sweep.attempt"
            while not steps(job) or not (pids := processes(job, kind)):
                time.sleep(0.01)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.extend(pids)
            path_of(job).with_suffix(".hold").unlink()

    for job in sweep.jobs[::2]:
        path_of(job).with_suffix(".hold").touch()
    thread = threading.Thread(target=kill)
    thread.start()
    run_locally(sweep, max_parallel=2, say=said.append)
    thread.join()
    assert len(killed) >= 2 and sum("continued" in line for line in said) >= 2
    assert finished(sweep) == [1] * 4 and {sweep.state(job) for job in sweep.jobs} == {"done"}
    assert [steps(job) for job in sweep.jobs] == [STEPS] * 4


def path_of(job: Job) -> Path:
    """The file of its steps."""
    flags = dict(zip(job.words[3::2], job.words[4::2], strict=True))
    return Path(f"{flags['--text']}_{flags['--seed']}.steps")


def steps(job: Job) -> int:
    """Steps taken by a job."""
    path = path_of(job)
    return path.read_text().count("\n") if path.exists() else 0


def processes(job: Job, kind: str) -> list[int]:
    """The processes of a job, by their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_text()
        except OSError:
            continue
        own = job.name in line if kind == "sweep.attempt" else all(f"\0{word}\0" in line for word in job.words[-7:-2])
        if kind in line and own:
            found.append(int(place.name))
    return found


def test_failures_show_the_end_of_their_log(command):
    sweep = made(command.replace("--rate", "--fails {no,yes} --rate"), "1")
    run_locally(sweep, max_parallel=4, say=lambda text: None)
    said = table(sweep)
    assert said.count("no such file") == 2 and "(exit code 1; full log:" in said and said.endswith("2 done, 2 failed")


def test_stopping_a_sweep_stops_its_commands(command):
    for job in made(command, "1", "another").jobs:
        path_of(job).with_suffix(".hold").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "RATE_model.sweep", command, "--seeds", "1", "--folder", "sweep"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.PIPE,
    )
    while not list(Path().glob("*.steps")):
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=200)
    sweep = made(command, "1")
    assert process.returncode == 128 + signal.SIGUSR1 and b"stopped by SIGUSR1" in errors
    assert b"sweep: the same command continues this sweep" in errors
    assert [sweep.state(job) for job in sweep.jobs] == ["stopped", "waiting"]
    assert not [pid for job in sweep.jobs for pid in processes(job, "script.py")]


def test_another_command_needs_another_folder(command):
    made(command)
    with pytest.raises(UserError, match="sweep has the sweep of another command"):
        made(command + " --more 1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--status"], "give a command in quotes"),
        (["--status", "--folder", "nowhere"], "nowhere has no sweep"),
        (["a", "--max_parallel", "0"], "--max_parallel 0: must be at least 1"),
        (["a", "--executor", "slurm", "--slurm", "gpu"], "--slurm gpu: must be KEY=VALUE"),
        (["a", "--executor", "cloud"], "--executor cloud: the value must be one of local, slurm"),
        (["nowhere/python x.py"], "nowhere/python: there is no such program"),
        ([f"{sys.executable} x_{{1,2}}.py --a b"], "x_1.py: there is no such file"),
        (["a", "--seed", "1"], "unrecognized arguments: --seed"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_damaged_state_is_named(command):
    sweep = made(command, "1")
    run_locally(sweep, max_parallel=2, say=lambda text: None)
    (sweep.place(sweep.jobs[0]) / "state.json").write_text("{")
    with pytest.raises(UserError, match="state.json is damaged"):
        table(sweep)


def test_submitted_jobs_run_once(command):
    """With submitit's local executor instead of SLURM."""
    pytest.importorskip("submitit")
    sweep, said = made(command, "1"), []
    for _ in range(2):  # queued jobs are not submitted again
        submit(sweep, max_parallel=2, settings={"timeout_min": "5"}, say=said.append, cluster="local")
    deadline = time.monotonic() + 200
    while {sweep.state(job) for job in sweep.jobs} != {"done"} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(said) == 2 and finished(sweep) == [1, 1]
    assert json.loads((sweep.place(sweep.jobs[0]) / "state.json").read_text())["submitted"]
