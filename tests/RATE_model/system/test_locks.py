"""Locks and temporary files: waiting, refusal, and cleaning up after a killed process."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from RATE_model.errors import UserError
from RATE_model.system import locks
from RATE_model.system.atomic import atomic_write_text
from RATE_model.system.locks import LockHeld, clear_leftovers, ensure, exclusive, hold, making, owner, temporary

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["flock", "no flock"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A disk with file locks, and one without."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.4)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.05)
    if request.param == "no flock":
        monkeypatch.setattr(locks, "_has_flock", lambda folder: False)
    return request.param


def start(work, *arguments) -> multiprocessing.Process:
    """Start a process and wait until it has created the file `ready` beside its first argument."""
    process = FORK.Process(target=work, args=arguments)
    process.start()
    ready = arguments[0].parent / "ready"
    deadline = time.monotonic() + 120
    while not ready.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    ready.unlink()
    return process


def hold_for_ever(lock: Path) -> None:
    with hold(lock):
        (lock.parent / "ready").touch()
        time.sleep(300)


def write_for_ever(path: Path) -> None:
    with temporary(path) as place:
        place.write_text("half a file")
        (path.parent / "ready").touch()
        time.sleep(300)


def kill(process: multiprocessing.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_second_process_is_refused_and_sees_the_owner(tmp_path: Path, disk: str) -> None:
    lock = tmp_path / ".lock"
    first = start(hold_for_ever, lock)
    before = lock.read_bytes()
    with pytest.raises(LockHeld, match=f"process {first.pid} on .* since 20.* UTC"), hold(lock):
        pass
    assert str(first.pid) in owner(lock) and lock.read_bytes() == before
    kill(first)
    assert owner(lock) is None and lock.exists()
    with hold(lock) as waited:
        assert not waited and str(os.getpid()) in owner(lock)
    assert owner(lock) is None and list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_affect_its_parents_lock(tmp_path: Path, disk: str) -> None:
    lock = tmp_path / ".lock"
    gate = FORK.Event()
    with hold(lock):
        child = FORK.Process(target=gate.wait)
        child.start()
    with hold(lock):
        pass
    with hold(lock):
        child_that_ends = FORK.Process(target=int)
        child_that_ends.start()
        child_that_ends.join()
        assert str(os.getpid()) in owner(lock)
    gate.set()
    child.join()


def test_process_ids_of_other_containers_are_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that share a disk may have equal process ids: only a heartbeat shows that an owner is alive."""
    monkeypatch.setattr(locks, "_has_flock", lambda folder: False)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.05)
    lock = tmp_path / ".lock"
    with hold(lock):
        there = json.loads(lock.read_text())
        monkeypatch.setattr(locks, "_machine_id", lambda: {"boot": "another", "namespace": "another"})
        assert str(os.getpid()) in owner(lock), "its file is being touched"
        monkeypatch.undo()
    monkeypatch.setattr(locks, "_has_flock", lambda folder: False)
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.05)
    lock.write_text(json.dumps(there | {"namespace": "another"}))
    assert owner(lock) is None, "its file is no longer touched"
    with hold(lock) as waited:
        assert not waited


def test_an_owner_that_lost_its_lock_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_has_flock", lambda folder: False)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    process = start(hold_for_ever, tmp_path / ".lock")
    known = json.loads((tmp_path / ".lock").read_text())
    atomic_write_text(tmp_path / "other", json.dumps(known | {"token": "another"}))
    os.replace(tmp_path / "other", tmp_path / ".lock")
    process.join(120)
    assert process.exitcode == 1


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path, disk: str) -> None:
    path = tmp_path / "data.h5"
    alive, killed = start(write_for_ever, tmp_path / "other"), start(write_for_ever, path)
    kill(killed)
    assert len(list(tmp_path.iterdir())) == 4
    clear_leftovers(tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 4, "a live writer is not disturbed"
    (tmp_path / ".data.h5.4711.tmp").touch()  # an older naming scheme
    atomic_write_text(path, "whole")
    assert sorted(name[:6] for name in os.listdir(tmp_path)) == [".other", ".other", "data.h"]
    kill(alive)
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "whole"


def make_slowly(path: Path, made: Path) -> None:
    def make() -> None:
        (path.parent / "ready").touch()
        while not (path.parent / "awaited").exists():
            time.sleep(0.01)
        (path.parent / "awaited").unlink()
        with open(made, "a") as file:
            file.write("made\n")
        path.touch()

    ensure(path, make)


def test_the_second_process_waits_and_uses_the_result(tmp_path: Path, disk: str, monkeypatch) -> None:
    path, made, said = tmp_path / "data", tmp_path / "made", []

    def say(text: str, **_: object) -> None:
        said.append(text)
        (tmp_path / "awaited").touch()

    monkeypatch.setattr(locks, "print", say, raising=False)
    first = start(make_slowly, path, made)
    make_slowly(path, made)
    assert made.read_text() == "made\n" and len(said) == 1 and said[0].endswith("waiting for it")
    first.join()
    path.unlink()
    first = start(make_slowly, path, made)
    with making(path, overwrite=True) as wanted:
        assert not wanted
    first.join()
    with making(path, overwrite=True) as wanted:
        assert wanted
    with pytest.raises(UserError, match="exists; add --overwrite true"), making(path, overwrite=False):
        pass
    assert sorted(tmp_path.iterdir()) == [path, made]


def test_a_lock_is_reentrant_within_a_thread(tmp_path: Path, disk: str) -> None:
    path = tmp_path / "data"
    with exclusive(path), temporary(path) as outer:
        outer.touch()
        with temporary(path, folder=True) as inner:
            assert outer.exists() and inner.is_dir() and inner != outer
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    atomic_write_text(path, "whole")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), exclusive(tmp_path / "file" / "data"):
        pass
    with pytest.raises(OSError), temporary(tmp_path / "missing" / "data"):
        pass


def test_heartbeats_are_used_only_without_file_locks(tmp_path: Path, monkeypatch) -> None:
    assert locks._has_flock(tmp_path)

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with hold(tmp_path / ".lock"):
        assert owner(tmp_path / ".lock") is not None
    assert list(tmp_path.iterdir()) == []
