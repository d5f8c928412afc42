"""Processes of one training group, forked from a test to avoid repeated imports."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from RATE_model.system import distributed

SECONDS = 150


def free_port() -> int:
    """A free local port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def variables(number: int, size: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for a process."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Group:
    """Fork this many processes that call `work`, with torchrun's environment variables."""

    def __init__(self, size: int, work: Callable[[], Any]) -> None:
        port, context = free_port(), multiprocessing.get_context("fork")
        self.processes, self._pipes = [], []
        for number in range(size):
            ours, theirs = context.Pipe()
            child = context.Process(target=_process, args=(variables(number, size, port), work, theirs))
            child.start()
            theirs.close()
            self.processes.append(child)
            self._pipes.append(ours)

    def results(self) -> list[Any]:
        """The result of `work` in each process, or its error as text; "killed" if the process was killed."""
        try:
            return [_received(pipe) for pipe in self._pipes]
        finally:
            for child in self.processes:
                child.join(5)
                child.kill()


def _process(own: dict[str, str], work: Callable[[], Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= own
    try:
        result = work()
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    pipe.send(result)


def _received(pipe: Any) -> Any:
    if not pipe.poll(SECONDS):
        return f"silent for {SECONDS} s"
    try:
        return pipe.recv()
    except EOFError:
        return "killed"


def in_group(size: int, work: Callable[[], Any]) -> list[Any]:
    """The result of `work` in each of this many processes of one group, or its error as text."""

    def joined() -> Any:
        with distributed.process_group():
            return work()

    return Group(size, joined).results()
