"""Real processes under torchrun: they end together, report the cause, and leave none behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.groups import free_port, variables
from tests.tmaze_runs import TINY, only_run, places

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "TMaze_new" / "TMaze_new_src" / "train_tmaze.py"
LONG = ("--epochs", "3000", "--ckpt_epoch", "1000", "--log_every", "1")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@contextmanager
def torchrun(folder: Path, *flags: str, script: Path = SCRIPT) -> Iterator[subprocess.Popen]:
    """Two processes under a launcher; any process left at the end is killed and fails the test."""
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2"),
            *(str(script), *TINY, *places(folder), *flags),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()


def workers(folder: Path) -> list[int]:
    """Ids of the training processes in a folder, without the launcher."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if str(folder) in line and "torch.distributed.run" not in line:
            found.append(int(place.name))
    return sorted(found)


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def training(folder: Path, lines: int = 3) -> bool:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/*/metrics.jsonl")) >= lines


@pytest.mark.parametrize(
    ("whom", "number"),
    [
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGUSR1),
        ("worker", signal.SIGUSR2),
        ("launcher", signal.SIGKILL),
    ],
)
def test_a_signal_saves_and_leaves_no_process(tmp_path, whom, number):
    with torchrun(tmp_path, *LONG) as launcher:
        wait_until(lambda: training(tmp_path))
        os.kill(launcher.pid if whom == "launcher" else workers(tmp_path)[-1], number)
        wait_until(lambda: not workers(tmp_path))
        said, _ = launcher.communicate(timeout=250)
    name = "SIGTERM" if number == signal.SIGKILL else number.name
    assert f"seed 1 stopped by {name}; continue with --resume auto" in said
    assert list((only_run(tmp_path) / "checkpoints").glob("step_*"))


def test_a_killed_worker_ends_all(tmp_path):
    with torchrun(tmp_path, *LONG) as launcher:
        wait_until(lambda: training(tmp_path))
        os.kill(workers(tmp_path)[-1], signal.SIGKILL)
        said, _ = launcher.communicate(timeout=250)
    assert not workers(tmp_path)
    assert re.search("process . of 2 stops: another process was killed", said) or "stopped by SIGTERM" in said


def test_a_process_that_dies_while_it_loads_ends_all(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        f"import os, runpy, sys\nif os.environ['RANK'] == '1':\n    sys.exit('error: no such module')\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    with torchrun(tmp_path, *LONG, script=script) as launcher:
        said, _ = launcher.communicate(timeout=250)
    assert launcher.returncode and "error: no such module" in said and not workers(tmp_path)


def start(folder: Path, *flags: str, number: int, port: int, **more: str) -> subprocess.Popen:
    """One of two processes, without a launcher."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *TINY, *places(folder), *flags],
        env=environment(**variables(number, 2, port), **more),
        stderr=subprocess.PIPE,
        text=True,
    )


def test_different_flags_end_all(tmp_path):
    port = free_port()
    both = [start(tmp_path, "--learning_rate", rate, number=n, port=port) for n, rate in enumerate(("0.1", "0.2"))]
    for process in both:
        _, said = process.communicate(timeout=250)
        assert process.returncode == 2
        problem = "--learning_rate is 0.1 in process 0 but 0.2 in process 1: start all processes with the same flags"
        assert said == f"error: {problem}\n"
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_that_one_does_not_see(tmp_path):
    """Two folders with the same name simulate a disk that is not shared."""
    port, here = free_port(), [tmp_path / "a", tmp_path / "b"]
    both = []
    for number, folder in enumerate(here):
        folder.mkdir()
        both.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *TINY, "--data_dir", "data", "--output_dir", "runs"],
                cwd=folder,
                env=environment(**variables(number, 2, port)),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in both:
        _, said = process.communicate(timeout=250)
        assert process.returncode == 2 and "process 1 does not see the run directory runs" in said
