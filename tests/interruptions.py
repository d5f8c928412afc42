"""Interrupt training runs and compare their files, for the resume tests of every environment."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from RATE_model.cli import experiment
from RATE_model.system.interrupts import Interrupted
from RATE_model.training import loop as fit
from RATE_model.training.checkpoints import find_checkpoint, load_checkpoint

STOPPED = 128 + signal.SIGTERM  # exit code of a run inside `stopped_after`


class StopAfter:
    """Replaces `Interrupts`: a signal arrives during the given batch."""

    def __init__(self, batch: int) -> None:
        self._left = batch

    @property
    def requested(self) -> str | None:
        self._left -= 1
        return None if self._left > 0 else "SIGTERM"

    def stop(self) -> None:
        raise Interrupted("SIGTERM")

    def __enter__(self) -> "StopAfter":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class Killed(BaseException):
    """An exception that nothing catches."""


@contextmanager
def stopped_after(batch: int) -> Iterator[None]:
    """A context in which runs stop after this many batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Interrupts", lambda: StopAfter(batch))
        yield


@contextmanager
def killed_behind_a_save() -> Iterator[None]:
    """A context in which runs die after writing a checkpoint."""

    def save_and_die(*arguments, **options) -> None:
        save(*arguments, **options)
        raise Killed

    save = fit.save_checkpoint
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fit, "save_checkpoint", save_and_die)
        yield


def newest_state(run: Path) -> dict:
    """Training state of the newest checkpoint of a run's directory."""
    return load_checkpoint(find_checkpoint(run / "checkpoints"))[1]


def outcome(run: Path) -> dict:
    """The contents of a run's directory, except for times."""
    weights, state = load_checkpoint(find_checkpoint(run / "checkpoints"))
    assert state.pop("seconds") > 0
    evaluations = {path.name: json.loads(path.read_text()) for path in sorted((run / "eval").iterdir())}
    for evaluation in evaluations.values():
        for name in ("train_seconds", "eval_seconds"):
            evaluation.pop(name, None)
    return {
        "weights": weights,
        "state": state,
        "evaluations": evaluations,
        "best": (run / "checkpoints" / "best").read_text() if (run / "checkpoints" / "best").exists() else None,
        "metrics": (run / "metrics.jsonl").read_bytes(),
    }


def differences(one, other, name: str = "") -> Iterator[str]:
    """The paths at which two nested structures differ in any bit."""
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield name
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            yield f"{name}: {sorted(map(str, one.keys() ^ other.keys()))}"
        for key in one.keys() & other.keys():
            yield from differences(one[key], other[key], f"{name}/{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{name}: {len(one)} and {len(other)}"
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{name}/{index}")
    elif one != other:
        yield f"{name}: {one} and {other}"


def assert_same(found: dict, expected: dict) -> None:
    """Assert that the outcomes of two runs are equal bit for bit, and not empty."""
    assert len(expected["state"]["trainer"]["optimizer"]["state"]) > 10 and expected["metrics"].count(b"\n") > 4
    assert list(differences(found, expected)) == []
