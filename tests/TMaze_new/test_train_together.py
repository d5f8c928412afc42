"""Several processes train one T-Maze run: interrupted and killed anywhere, it continues as if nothing had happened."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.groups import Group
from tests.interruptions import assert_same, outcome
from tests.tmaze_runs import only_run, train
from TMaze_new.TMaze_new_src import environment

# Random numbers in addition to dropout's, and many points of interruption.
FLAGS = ("--action_noise", "0.1", "--epochs", "4", "--ckpt_epoch", "1", "--log_every", "1")
STOPPED = {number: 128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}


@pytest.fixture(scope="module", autouse=True)
def without_pictures():
    """They take longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment.TMaze, "draw_run", lambda *arguments, **options: None)
        yield


def together(size: int, folder: Path, *flags: str) -> Group:
    return Group(size, partial(train, folder, *FLAGS, *flags))


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/*/*/metrics.jsonl"))


def wait_for_lines(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while lines(folder) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The results of an uninterrupted run with two processes."""
    folder = tmp_path_factory.mktemp("whole")
    assert together(2, folder).results() == [0, 0]
    return outcome(only_run(folder))


@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGUSR2, 1), pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_process_saves_and_stops_all(tmp_path, whole, number, rank):
    group = together(2, tmp_path)
    wait_for_lines(tmp_path, 5)
    _send(group, rank, number)
    assert group.results() == [STOPPED[number]] * 2
    assert together(2, tmp_path, "--resume", "auto").results() == [0, 0]
    assert_same(outcome(only_run(tmp_path)), whole)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_process_stops_all_and_the_run_continues(tmp_path, whole, rank):
    group = together(2, tmp_path)
    wait_for_lines(tmp_path, 7)
    group.processes[rank].kill()
    results = group.results()
    assert results[rank] == "killed" and results[1 - rank] in ("SystemExit: 2", STOPPED[signal.SIGTERM])
    assert together(2, tmp_path, "--resume", "auto").results() == [0, 0]
    assert_same(outcome(only_run(tmp_path)), whole)


@pytest.mark.slow
def test_resuming_with_another_number_of_processes_is_noted(tmp_path, capfd):
    group = together(2, tmp_path)
    wait_for_lines(tmp_path, 5)
    _send(group, 0, signal.SIGTERM)
    group.results()
    assert train(tmp_path, *FLAGS, "--resume", "auto") == 0
    assert "was trained by 2 processes and continues with 1" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("curriculum", [("--curr", "true"), "--curr adaptive --streak 3 --stage_batches 9".split()])
def test_curricula_take_the_same_steps_with_three_processes(tmp_path, curriculum):
    """Three processes share 16 trajectories, and the rest in an epoch's last batch."""
    flags = (*curriculum, "--dropout", "0", "--epochs", "2", "--log_every", "1", "--anneal_batches", "6")
    found = []
    for size in (1, 3):
        folder = tmp_path / str(size)
        assert Group(size, partial(train, folder, *flags)).results() == [0] * size
        text = (only_run(folder) / "metrics.jsonl").read_text()
        found.append([json.loads(line) for line in text.splitlines()])
    one, three = found
    assert [line.keys() for line in one] == [line.keys() for line in three] and len(one) > 8
    for line, other in zip(one, three, strict=True):
        assert other == pytest.approx(line, rel=1e-4, abs=1e-5)
    assert one[-1]["Success_rate"] == three[-1]["Success_rate"]


def test_more_processes_than_trajectories_per_batch(tmp_path, capfd):
    assert together(2, tmp_path, "--batch_size", "1").results() == ["SystemExit: 2"] * 2
    assert "error: --batch_size 1: fewer trajectories than the 2 processes" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def _send(group: Group, rank: int, number: int) -> None:
    pid = group.processes[rank].pid
    assert pid is not None
    os.kill(pid, number)
