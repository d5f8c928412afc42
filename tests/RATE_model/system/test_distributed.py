"""Processes of one run: what they tell each other, and how they end."""

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


def test_alone_everything_is_as_without():
    tensor = torch.tensor([1.0, 2.0])
    assert distributed.size() == 1 and distributed.rank() == 0 and distributed.is_first()
    assert distributed.part(5) == slice(0, 5) and distributed.pairs(3).all() and distributed.own_seed(7) == 7
    assert distributed.gather("a") == distributed.together(lambda: "a") == ["a"]
    assert distributed.by_first(lambda: 3) == distributed.first_before_others(lambda: 3) == 3
    assert distributed.add_up(tensor) is tensor and tensor.tolist() == [1, 2]
    assert distributed.signal_anywhere("SIGTERM") == "SIGTERM" and not distributed.any_of(False)
    with distributed.joined():
        assert distributed.size() == 1


def test_every_row_and_episode_is_of_one_process():
    def shares():
        rows = np.arange(7)
        return rows[distributed.part(7)].tolist(), rows[distributed.pairs(7)].tolist(), distributed.own_seed(7)

    parts, pairs, seeds = zip(*in_group(3, shares), strict=True)
    assert sum(parts, []) == list(range(7)) and sorted(sum(pairs, [])) == list(range(7))
    assert pairs[0] == [0, 1, 6] and len(set(seeds)) == 3 and seeds[0] == 7


def test_messages_reach_all():
    def talk():
        number = distributed.rank()
        tensor = torch.tensor([float(number), 1.0])
        distributed.broadcast([first := torch.tensor([number])])
        sums = distributed.add_up(tensor).tolist(), distributed.totals([number, 1])
        alone = distributed.by_first(lambda: (distributed.rank(), distributed.size(), number))
        name = distributed.signal_anywhere("SIGUSR1" if number == 1 else None)
        return sums, first.tolist(), distributed.gather(number), alone, distributed.any_of(number == 1), name

    expected = ([1.0, 2.0], [1, 2]), [0], [0, 1], (0, 1, 0), True, "SIGUSR1"
    assert in_group(2, talk) == [expected] * 2


def test_first_process_makes_what_the_others_find(tmp_path):
    def make():
        path = tmp_path / "made"
        there = path.exists()
        path.write_text("")
        return there

    assert in_group(2, lambda: distributed.first_before_others(make)) == [False, True]


def test_only_the_first_process_is_heard(capfd):
    in_group(2, lambda: print("hello", flush=True))
    assert capfd.readouterr().out == "hello\n"


def test_different_flags_are_named():
    def check():
        distributed.check_same({"seed": 1, "learning_rate": 0.1 + distributed.rank()})

    expected = "UserError: --learning_rate is 0.1 in process 0 and 1.1 in process 1: start all with the same flags"
    assert in_group(2, check) == [expected] * 2


def test_error_of_one_process_is_named_by_the_others():
    def work():
        if distributed.rank() == 1:
            raise UserError("the disk is full")
        distributed.gather(1)

    first, second = in_group(2, work)
    assert second == "UserError: the disk is full"
    assert first.startswith("UserError: process 0 of 2 stops: process 1 ended: the disk is full;")


def test_killed_process_ends_the_others():
    def work():
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            distributed.any_of(False)

    left, killed = in_group(2, work)
    assert killed == "killed" and "another process was killed or cannot be reached" in left


def test_waiting_for_the_first_ends_with_it():
    def work():
        distributed.by_first(lambda: 1 / 0)

    first, second = in_group(2, work)
    assert first.startswith("ZeroDivisionError") and "process 0 ended: division by zero" in second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signal_to_one_process_interrupts_all_where_they_are(number):
    """One plays on while the other is through, and waits for it."""

    def play():
        for _ in range(4000 * distributed.rank()):
            stop_if_asked()
            time.sleep(0.05)

    def work():
        with Interrupts():
            if distributed.rank() == 0:
                os.kill(os.getpid(), number)
            try:
                distributed.together(lambda: distributed.together(play))
            except Interrupted as interruption:
                return interruption.name, distributed.gather("and still in step")

    assert in_group(2, work) == [(number.name, ["and still in step"] * 2)] * 2


def test_signal_to_one_process_ends_all_that_only_wait():
    def work():
        with raising_interrupts():
            if distributed.rank() == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(120)

    started = time.monotonic()
    assert in_group(2, work) == ["Interrupted: SIGUSR1"] * 2
    assert time.monotonic() - started < 60


def test_others_that_do_not_come(monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 1)
    monkeypatch.setattr("tests.groups.variables", lambda number, size, port: _variables(number, 3, port))
    assert "UserError: process 0 of 3: 1 of them did not come within 1 s" in in_group(2, lambda: None)[0]


def _variables(number: int, size: int, port: int) -> dict[str, str]:
    return {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_variables_that_are_no_numbers(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK=first: must be a number"), distributed.joined():
        pass
