"""Worker processes: results, errors, and no process outlives its parent."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores, check_writable, in_order, in_processes


def _double(number):
    return 2 * number, os.getpid()


def _fail(number):
    raise UserError(f"task {number} is bad")


def _die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_from_the_requested_number_of_processes():
    done = list(in_processes(_double, [1, 2, 3], 1))
    assert done == [(2, os.getpid()), (4, os.getpid()), (6, os.getpid())]
    assert sorted(number for number, _ in in_processes(_double, range(6), 2)) == [0, 2, 4, 6, 8, 10]
    ((number, process),) = in_processes(_double, [4], 8)
    assert (number, process) == (8, os.getpid()), "one task needs no process"
    assert list(in_processes(_double, [], 4)) == []
    assert available_cores() >= 1


def _slow_if_even(number):
    time.sleep(0.2 * (number % 2 == 0))
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_endless_tasks_give_results_in_order(workers):
    """No more tasks are started than requested, and started ones end with the iterator."""
    taken = []
    tasks = (taken.append(number) or number for number in itertools.count())
    with contextlib.closing(in_order(_slow_if_even, tasks, workers, ahead=2)) as results:
        assert taken == []
        assert list(itertools.islice(results, 6)) == [0, 1, 2, 3, 4, 5]
    assert taken == list(range(6 if workers == 1 else 5 + 2 * workers))
    assert multiprocessing.active_children() == []
    assert list(in_order(_slow_if_even, range(3), workers)) == [0, 1, 2]
    assert list(in_order(_slow_if_even, [], workers)) == []


def test_errors_reach_the_caller():
    with pytest.raises(UserError, match="is bad"):
        list(in_processes(_fail, [1, 2, 3], 2))
    with pytest.raises(UserError, match="was killed or could not start; use --workers 1"):
        list(in_processes(_die, [1, 2], 2))
    with pytest.raises(UserError, match="is bad"):
        list(in_order(_fail, [1, 2, 3], 2))
    with pytest.raises(UserError, match="was killed or could not start; use --workers 1"):
        list(in_order(_die, [1, 2], 2))


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "from RATE_model.system.processes import in_processes\n"
        "def work(number):\n"
        "    pathlib.Path(f'{os.getpid()}.pid').touch()\n"
        "    time.sleep(300)\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(work, [1, 2], 2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    program = subprocess.Popen([sys.executable, "slow.py"], cwd=tmp_path, env=environment)
    wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, "the work did not begin")
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    program.kill()
    program.wait()
    wait_until(lambda: not any(is_running(process) for process in workers), "a worker outlived its program")


def wait_until(condition, problem):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


def is_running(process):
    """Whether a process exists and is not a zombie; where there is no /proc, whether it exists."""
    status = Path(f"/proc/{process}/stat")
    if Path("/proc/self/stat").exists():
        return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_unwritable_path_is_refused_early(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "file.h5")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        check_writable(tmp_path / "file" / "data.h5")
    with pytest.raises(UserError, match="it is a directory"):
        check_writable(tmp_path)


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_asked_to_stop_leaves_its_task_or_refuses_the_next(busy):
    """Between tasks it may be halfway through a message, and must complete it."""
    stop = "processes._leave(signal.SIGALRM, None)"
    first = f"processes._busy_with(lambda task: {stop}, 0)" if busy else f"{stop}; print('went on', flush=True)"
    program = (
        f"import signal\nfrom RATE_model.system import processes\n"
        f"try:\n    {first}\n    processes._busy_with(print, 'started')\nfinally:\n    print('unwound', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    printed = "unwound\n" if busy else "went on\nunwound\n"
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 128 + signal.SIGALRM)


def _large(number):
    return bytes(50_000_000)


def test_stopping_does_not_cut_a_result_that_is_being_sent():
    """The other end of the pipe would wait for the rest of it for ever."""
    start = time.monotonic()
    for _ in range(3):
        with contextlib.closing(in_order(_large, range(50), 2)) as results:
            next(results)
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 60
