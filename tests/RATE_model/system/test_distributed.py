"""Processes of one run: communication, signals and failures."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.system import distributed
from RATE_model.system.interrupts import Interrupted, Interrupts, raising_interrupts, stop_if_asked
from tests.groups import in_group


def test_everything_is_a_no_op_in_a_single_process():
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.size() == 1 and distributed.rank() == 0 and distributed.is_first()
    assert (
        distributed.row_slice(5) == slice(0, 5)
        and distributed.episode_mask(3).all()
        and distributed.process_seed(7) == 7
    )
    assert distributed.gather("a") == distributed.run_in_all(lambda: "a") == ["a"]
    assert distributed.run_on_first(lambda: 3) == distributed.run_first_then_rest(lambda: 3) == 3
    assert distributed.sum_tensor(tensor) is tensor and tensor.tolist() == [1, 2]
    assert distributed.signal_in_any("SIGTERM") == "SIGTERM" and not distributed.any_process(False)
    with distributed.process_group():
        assert distributed.size() == 1


def test_every_row_and_episode_belongs_to_one_process():
    def shares():
        rows = np.arange(7)
        return (
            rows[distributed.row_slice(7)].tolist(),
            rows[distributed.episode_mask(7)].tolist(),
            distributed.process_seed(7),
        )

    parts, pairs, seeds = zip(*in_group(3, shares), strict=True)
    assert sum(parts, []) == list(range(7)) and sorted(sum(pairs, [])) == list(range(7))
    assert pairs[0] == [0, 1, 6] and len(set(seeds)) == 3 and seeds[0] == 7


def test_every_process_gets_the_messages():
    def talk():
        number = distributed.rank()
        tensor = torch.tensor([float(number), 1.0])
        distributed.broadcast([first := torch.tensor([number])])
        sums = distributed.sum_tensor(tensor).tolist(), distributed.sum_integers([number, 1])
        alone = distributed.run_on_first(lambda: (distributed.rank(), distributed.size(), number))
        name = distributed.signal_in_any("SIGUSR1" if number == 1 else None)
        return sums, first.tolist(), distributed.gather(number), alone, distributed.any_process(number == 1), name

    expected = ([1.0, 2.0], [1, 2]), [0], [0, 1], (0, 1, 0), True, "SIGUSR1"
    assert in_group(2, talk) == [expected] * 2


def test_process_0_runs_before_the_others(tmp_path):
    def make():
        path = tmp_path / "made"
        there = path.exists()
        path.write_text("")
        return there

    assert in_group(2, lambda: distributed.run_first_then_rest(make)) == [False, True]


def test_only_process_0_prints(capfd):
    in_group(2, lambda: print("hello", flush=True))
    assert capfd.readouterr().out == "hello\n"


def test_different_flags_are_an_error():
    def check():
        distributed.check_same({"seed": 1, "learning_rate": 0.1 + distributed.rank()})

    expected = (
        "UserError: --learning_rate is 0.1 in process 0 but 1.1 in process 1: start all processes with the same flags"
    )
    assert in_group(2, check) == [expected] * 2


def test_an_error_is_reported_by_all_processes():
    def work():
        if distributed.rank() == 1:
            raise UserError("the disk is full")
        distributed.gather(1)

    first, second = in_group(2, work)
    assert second == "UserError: the disk is full"
    assert first.startswith("UserError: process 0 of 2 stops: process 1 ended: the disk is full;")


def test_a_killed_process_stops_the_others():
    def work():
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            distributed.any_process(False)

    left, killed = in_group(2, work)
    assert killed == "killed" and "another process was killed or cannot be reached" in left


def test_waiting_ends_when_process_0_dies():
    def work():
        distributed.run_on_first(lambda: 1 / 0)

    first, second = in_group(2, work)
    assert first.startswith("ZeroDivisionError") and "process 0 ended: division by zero" in second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_to_one_process_interrupts_all(number):
    """One process is still playing while the other has finished and waits for it."""

    def play():
        for _ in range(4000 * distributed.rank()):
            stop_if_asked()
            time.sleep(0.05)

    def work():
        with Interrupts():
            if distributed.rank() == 0:
                os.kill(os.getpid(), number)
            try:
                distributed.run_in_all(lambda: distributed.run_in_all(play))
            except Interrupted as interruption:
                return interruption.name, distributed.gather("and still in step")

    assert in_group(2, work) == [(number.name, ["and still in step"] * 2)] * 2


def test_a_signal_to_one_process_stops_waiting_ones():
    def work():
        with raising_interrupts():
            if distributed.rank() == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(120)

    started = time.monotonic()
    assert in_group(2, work) == ["Interrupted: SIGUSR1"] * 2
    assert time.monotonic() - started < 60


def test_processes_that_do_not_start_are_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 1)
    monkeypatch.setattr("tests.groups.variables", lambda number, size, port: _variables(number, 3, port))
    assert "UserError: process 0 of 3: 1 of them did not start within 1 s" in in_group(2, lambda: None)[0]


def _variables(number: int, size: int, port: int) -> dict[str, str]:
    return {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_a_non_numeric_variable_is_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK=first: must be a number"), distributed.process_group():
        pass
