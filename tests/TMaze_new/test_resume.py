"""A run that is interrupted and resumed equals, bit for bit, an uninterrupted one.

Interruptions come in three kinds: a signal that asks to stop (a checkpoint is written), a kill (work since the
last checkpoint is lost and repeated), and damage to the newest checkpoint (the one before is used).
"""

import errno
import itertools
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from RATE_model.system import atomic
from RATE_model.training import checkpoints, tracking
from RATE_model.training import loop as fit
from RATE_model.training.checkpoints import resolve_checkpoint
from tests import interruptions
from tests.interruptions import STOPPED, differences, killed_behind_a_save, newest_state, stopped_after
from tests.tmaze_runs import BATCHES_PER_EPOCH, MODES, TINY, only_run, places, train
from TMaze_new.TMaze_new_src import train_tmaze

REPOSITORY = Path(__file__).resolve().parents[2]
# Saves after every epoch; TINY only does so after the first and the second.
EVERY_EPOCH = ("--ckpt_epoch", "1", "--log_every", "1")
CURRICULA = {
    "false": (),
    "true": ("--curr", "true"),
    "short epochs": ("--epoch_batches", "3"),
    # No stage is solved: 3 batches of one segment (an epoch and a half), 5 of two, and the annealing.
    "adaptive": "--curr adaptive --stage_batches 5 --anneal_batches 4".split(),
}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(type(train_tmaze.ENVIRONMENT), "draw_run", lambda *arguments: None)


def stop_after(batch: int, folder: Path, *flags: str) -> None:
    """Start or resume the run, and stop it after this many batches."""
    with stopped_after(batch):
        assert train(folder, *flags, "--resume", "auto") == STOPPED


def kill_behind_a_save(folder: Path, *flags: str) -> None:
    """Resume the run, if there is one, and kill it when it has written a checkpoint."""
    with killed_behind_a_save():
        train(folder, *flags, "--resume", "auto")


def outcome(folder: Path) -> dict:
    """Everything that the run in a folder writes, except for times."""
    return interruptions.outcome(only_run(folder))


@lru_cache
def uninterrupted(folder: Path, flags: tuple[str, ...]) -> dict:
    """The outcome of an uninterrupted run."""
    folder = folder / str(abs(hash(flags)))
    assert train(folder, *flags) == 0
    return outcome(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("uninterrupted")


def assert_same(folder: Path, shared: Path, flags: tuple[str, ...]) -> None:
    interruptions.assert_same(outcome(folder), uninterrupted(shared, flags))


# --- a signal asks to stop ---


def test_interruption_anywhere_changes_nothing(tmp_path, shared):
    """In the first batch, in the middle of an epoch, between two epochs, shortly before the end."""
    flags = MODES["RATE"]
    for batch in (1, 2, BATCHES_PER_EPOCH - 3, 3, 4):
        stop_after(batch, tmp_path, *flags)
    steps = newest_state(only_run(tmp_path))["trainer"]["step"]
    assert steps == 11
    assert train(tmp_path, *flags, "--resume", "auto") == 0
    assert_same(tmp_path, shared, flags)


@pytest.mark.parametrize("curriculum", ["true", "adaptive"])
def test_interruption_in_any_stage_changes_nothing(tmp_path, shared, curriculum):
    flags = tuple(CURRICULA[curriculum])
    positions = []
    for batch in (1, 2, 2, 3, 1, 1, 1):
        stop_after(batch, tmp_path, *flags)
        state = newest_state(only_run(tmp_path))
        positions.append((state["curriculum"]["index"], state["curriculum"].get("anneal_left")))
    assert {index for index, _ in positions} == {0, 1}
    assert curriculum == "true" or {left for _, left in positions} > {None}  # also during the annealing
    assert train(tmp_path, *flags, "--resume", "auto") == 0
    assert_same(tmp_path, shared, flags)


def test_interruption_in_bf16_with_steps_per_segment_changes_nothing(tmp_path, shared):
    flags = ("--bptt_segments", "0", "--accumulate", "2", "--precision", "bf16", "--arch_mode", "GTrXL")
    for batch in (3, 4):
        stop_after(batch, tmp_path, *flags)
    assert train(tmp_path, *flags, "--resume", "auto") == 0
    assert_same(tmp_path, shared, flags)


def test_loader_workers_change_nothing(tmp_path, shared):
    """Stopped with two workers, resumed without, and the other way round."""
    workers = ("--num_workers", "2")
    stop_after(2, tmp_path, *workers)
    stop_after(3, tmp_path)
    assert train(tmp_path, *workers, "--resume", "auto") == 0
    assert_same(tmp_path, shared, ())


# --- kills ---


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_kill_after_any_checkpoint_changes_nothing(tmp_path, shared, curriculum):
    """Also after one written between two stages, and after the last one."""
    flags = (*CURRICULA[curriculum], *EVERY_EPOCH)
    last = uninterrupted(shared, flags)["state"]["trainer"]["step"]
    saves = 0
    while saves == 0 or int(resolve_checkpoint(only_run(tmp_path)).name.removeprefix("step_")) < last:
        kill_behind_a_save(tmp_path, *flags)
        saves += 1
    assert saves >= 3
    assert train(tmp_path, *flags, "--resume", "auto") == 0
    assert_same(tmp_path, shared, flags)


def test_kill_during_last_save_leaves_no_extra_checkpoint(tmp_path, shared, monkeypatch):
    """The newest checkpoint is complete, and the one that it replaces still exists."""
    last = uninterrupted(shared, EVERY_EPOCH)["state"]["trainer"]["step"]

    def die(directory: Path, step: int, keep: int) -> None:
        if step == last:
            raise interruptions.Killed
        rotate(directory, step, keep)

    rotate = checkpoints._rotate
    with monkeypatch.context() as patch, pytest.raises(interruptions.Killed):
        patch.setattr(checkpoints, "_rotate", die)
        train(tmp_path, *EVERY_EPOCH)
    assert train(tmp_path, *EVERY_EPOCH, "--resume", "auto") == 0
    assert_same(tmp_path, shared, EVERY_EPOCH)
    best = resolve_checkpoint(only_run(tmp_path), tag="best").name
    kept = {best, f"step_{last:08d}", f"step_{last - BATCHES_PER_EPOCH:08d}"}
    assert {path.name for path in (only_run(tmp_path) / "checkpoints").iterdir()} == kept | {"best"}


def test_best_checkpoint_survives_a_kill(tmp_path, monkeypatch):
    """The loss rises from epoch to epoch: the first checkpoint stays the best."""
    monkeypatch.setattr(fit.Trainer, "validate", lambda trainer, batches: {"validation_loss": float(trainer.step)})
    for _ in range(2):
        kill_behind_a_save(tmp_path, *EVERY_EPOCH)
    assert train(tmp_path, *EVERY_EPOCH, "--resume", "auto") == 0
    assert outcome(tmp_path)["best"] == f"step_{BATCHES_PER_EPOCH:08d}\n"


SIGNAL_ITSELF = """
import os, signal, sys
from RATE_model.training.trainer import Trainer
from TMaze_new.TMaze_new_src import train_tmaze

number, left = getattr(signal, sys.argv[1]), int(sys.argv[2])
train_batch = Trainer.train_batch

def interrupted(self, batch):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)
    return train_batch(self, batch)

Trainer.train_batch = interrupted
sys.exit(train_tmaze.main(sys.argv[3:]))
"""


def test_real_signals_to_a_real_process(tmp_path, shared):
    """SIGKILL loses the batches after the first epoch; SIGTERM saves first, with workers that get it too."""
    flags = EVERY_EPOCH
    assert train(tmp_path / "data", *flags, "--epochs", "1") == 0  # makes the data that both use
    names = {"SIGTERM": ("--num_workers", "2"), "SIGKILL": ()}
    processes = {}
    for name, more in names.items():
        where = places(tmp_path / "data")[:2] + places(tmp_path / name)[2:]
        command = [sys.executable, "-c", SIGNAL_ITSELF, name, str(BATCHES_PER_EPOCH + 3), *TINY, *where, *flags, *more]
        processes[name] = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    for name, process in processes.items():
        _, errors = process.communicate(timeout=250)
        folder, number = tmp_path / name, getattr(signal, name)
        lines = (only_run(folder) / "metrics.jsonl").read_text().count("\n")
        steps = newest_state(only_run(folder))["trainer"]["step"]
        if name == "SIGKILL":
            assert process.returncode == -number and steps == BATCHES_PER_EPOCH < lines - 1
        else:
            assert process.returncode == 128 + number and steps == BATCHES_PER_EPOCH + 3
            stopped = f"{only_run(folder)}: seed 1 stopped by {name}; continue with python3 TMaze_new"
            assert stopped in errors and errors.endswith(" --resume auto\n")
        assert "Traceback" not in errors
        where = ("--data_dir", places(tmp_path / "data")[1])
        assert train(folder, *flags, *where, "--resume", "auto") == 0
        assert_same(folder, shared, flags)


# --- damage ---


def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, shared, capsys):
    stop_after(2 * BATCHES_PER_EPOCH + 1, tmp_path)
    checkpoints = only_run(tmp_path) / "checkpoints"
    newest = resolve_checkpoint(checkpoints)
    assert newest.name == "step_00000009"
    damaged = newest / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    capsys.readouterr()
    assert train(tmp_path, "--resume", "auto") == 0
    assert (
        f"warning: checkpoint {newest} is damaged (model.safetensors differs from what was saved)"
        in capsys.readouterr().err
    )
    assert_same(tmp_path, shared, ())


def test_run_with_only_damaged_checkpoints_is_not_restarted(tmp_path, capsys):
    stop_after(1, tmp_path)
    newest = resolve_checkpoint(only_run(tmp_path))
    (newest / "training.pt").unlink()
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, "--resume", "auto")
    assert "has only damaged checkpoints; start it again with --overwrite true" in capsys.readouterr().err
    assert newest.exists()


# --- finished runs, and runs of others ---


def test_resuming_a_finished_run_changes_nothing(tmp_path, shared):
    assert train(tmp_path) == 0
    run = only_run(tmp_path)
    kept = [run / "metrics.jsonl", *run.rglob("model.safetensors"), *run.glob("eval/epoch*.json")]
    before = [path.read_bytes() for path in kept]
    for _ in range(2):
        assert train(tmp_path, "--resume", "auto") == 0
    assert len(kept) >= 4 and [path.read_bytes() for path in kept] == before
    assert_same(tmp_path, shared, ())


def test_a_finished_run_can_be_given_more_epochs(tmp_path):
    assert train(tmp_path, "--lr_schedule", "constant") == 0
    assert train(tmp_path, "--lr_schedule", "constant", "--epochs", "4", "--resume", "auto") == 0
    longer = tmp_path / "longer"
    assert train(longer, "--lr_schedule", "constant", "--epochs", "4") == 0
    assert list(differences(outcome(tmp_path)["weights"], outcome(longer)["weights"])) == []


def test_run_is_not_overwritten_or_resumed_by_default(tmp_path, capsys):
    stop_after(1, tmp_path)
    before = outcome(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path)
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "--resume auto" in message and "--overwrite true" in message
    assert message.count("\n") == 1 and list(differences(outcome(tmp_path), before)) == []
    assert train(tmp_path, "--overwrite", "true", "--epochs", "1") == 0
    assert outcome(tmp_path)["state"]["trainer"]["step"] == BATCHES_PER_EPOCH


def test_resuming_with_another_configuration_is_refused(tmp_path, capsys):
    stop_after(1, tmp_path)
    before = outcome(tmp_path)
    for key, value in {"d_model": "24", "hint_steps": "2", "beta_1": "0.8", "epochs": "2"}.items():
        with pytest.raises(SystemExit, match="2"):
            train(tmp_path, f"--{key}", value, "--resume", str(only_run(tmp_path)))
        message = capsys.readouterr().err
        assert f"cannot be resumed with a different configuration: {key} was " in message and value in message
        assert list(differences(outcome(tmp_path), before)) == []


def test_run_can_be_resumed_from_another_folder(tmp_path, shared):
    """`--resume PATH` continues a copy elsewhere; the metrics begin there."""
    stop_after(5, tmp_path)
    run = only_run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    where = ("--data_dir", places(tmp_path)[1])
    assert train(elsewhere, *where, "--resume", str(run)) == 0
    assert list(differences(outcome(elsewhere)["weights"], uninterrupted(shared, ())["weights"])) == []


# --- a full disk ---


@contextmanager
def full_disk(place: str) -> Iterator[None]:
    """Leave room for only half of the data that is written to a path of the run."""
    write, append, lines = atomic.write_durably, tracking._append, itertools.count(1)

    def write_half(path: Path, data: bytes) -> None:
        if place in path.name:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    def append_half(file: Any, record: dict[str, Any]) -> str:
        if place == "metrics.jsonl" and next(lines) >= 8:
            file.write('{"step": ')
            file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(file, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "write_durably", write_half)
        patch.setattr(tracking, "_append", append_half)
        yield


@pytest.mark.parametrize("place", ["metrics.jsonl", "final.json"])
def test_full_disk_is_reported_and_loses_nothing(tmp_path, shared, capsys, place):
    flags = ("--start_seed", "1", "--end_seed", "2")
    with full_disk(place):
        assert train(tmp_path, *flags) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" failed: ")[0] for line in said[:2]] == ["seed 1", "seed 2"] and len(said) == 3
    assert all(place in line and "No space left on device" in line for line in said[:2])
    assert not list(tmp_path.rglob("*.tmp"))
    shutil.rmtree(next(tmp_path.glob("runs/*/*_2")))
    assert train(tmp_path, "--resume", "auto") == 0
    assert_same(tmp_path, shared, ())


# --- a signal during validation, evaluation, pictures ---


@contextmanager
def signal_in(target: str, call: int, number: int) -> Iterator[None]:
    """The signal comes during the Nth call of a function, counted from now."""
    owner, name = target.rsplit(".", 1)
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        yield


ACT, VALIDATE = "RATE_model.acting.actor.Actor.act", "RATE_model.training.trainer.Trainer.validate"


@pytest.mark.parametrize(
    ("target", "call", "evaluations"),
    [(VALIDATE, 1, 0), (ACT, 12 + 2, 1), (ACT, 12 + 12 + 2, 2)],
)
def test_a_signal_stops_validation_and_evaluation_at_once(tmp_path, shared, capsys, target, call, evaluations):
    """Also the last ones. The resumed run completes them."""
    with signal_in(target, call, signal.SIGUSR2):
        assert train(tmp_path, "--resume", "auto") == 128 + signal.SIGUSR2
    assert "seed 1 stopped by SIGUSR2; continue with python3 " in capsys.readouterr().err
    assert len(list((only_run(tmp_path) / "eval").iterdir())) == evaluations
    assert train(tmp_path, "--resume", "auto") == 0
    assert_same(tmp_path, shared, ())


def test_signal_while_resuming_finished_run_changes_nothing(tmp_path, shared):
    assert train(tmp_path) == 0
    with signal_in(VALIDATE, 1, signal.SIGUSR2):
        assert train(tmp_path, "--resume", "auto") == 128 + signal.SIGUSR2
    assert train(tmp_path, "--resume", "auto") == 0
    assert_same(tmp_path, shared, ())


def test_a_signal_stops_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(train_tmaze.ENVIRONMENT), "draw_run", lambda *_: (os.kill(os.getpid(), signal.SIGHUP), time.sleep(9))
    )
    assert train(tmp_path) == 128 + signal.SIGHUP
