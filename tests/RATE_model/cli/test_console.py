"""Printing never fails, and messages stay on one line."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from RATE_model.cli.console import lasting_output, machine_error, one_line
from RATE_model.cli.options import exit_on_user_error
from RATE_model.training.runs import Run, run_seeds

RUNS = [Run(Path(f"RUN_{seed}"), seed, None, lambda: (None, ())) for seed in (1, 2)]


class Console(io.TextIOWrapper):
    """A stdout of some encoding, or one that fails."""

    def __init__(self, encoding: str = "utf-8", error: OSError | None = None) -> None:
        self.raw = io.BytesIO()
        super().__init__(self.raw, encoding=encoding)
        self.error = error

    def flush(self) -> None:
        if getattr(self, "error", None):
            raise self.error
        super().flush()


def test_unsupported_characters_are_written_in_ascii(monkeypatch):
    console = Console("ascii")
    monkeypatch.setattr(sys, "stdout", console)
    with lasting_output():
        print("1.0 ± 0.5 → ü")
    assert console.raw.getvalue() == b"1.0 +/- 0.5 -> \\xfc\n" and sys.stdout is console


def test_names_that_are_not_utf8_are_shown(monkeypatch):
    console = Console()
    monkeypatch.setattr(sys, "stdout", console)
    with lasting_output():
        print(os.fsdecode(b"\xff.h5"))
    assert console.raw.getvalue() == b"\\udcff.h5\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ""),
        (OSError(errno.ENOSPC, "No space left on device"), "output cannot be written (No space left on device)"),
    ],
)
def test_every_seed_is_trained_without_a_console(monkeypatch, capsys, error, said):
    monkeypatch.setattr(sys, "stdout", Console(error=error))
    with exit_on_user_error():
        assert run_seeds(RUNS, lambda run: print(run.seed)) == 0
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == (1 if said else 0)


def test_no_stdout_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    trained = []
    with exit_on_user_error():
        assert run_seeds(RUNS, lambda run: (print(run.seed), trained.append(run.seed))) == 0
    assert trained == [1, 2]


def test_control_characters_are_escaped():
    assert one_line("a\nb\r\x1b[2J\u2028\x85c\udcff ü±") == "a\\nb\\r\\x1b[2J\\u2028\\x85c\\udcff ü±"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files", "data.h5"), "data.h5: Too many open files; raise the limit"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: No space left on device; free some space"),
        (MemoryError(), "out of memory: give the process more"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory\nmore"), "out of memory ([enforce]"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory (CUDA"),
    ],
)
def test_machine_errors_are_one_line(capsys, error, said):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise error
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.startswith(f"error: {said}") and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    assert machine_error(RuntimeError("shapes differ")) is None and machine_error(OSError("unheard of")) is None
    with pytest.raises(RuntimeError), exit_on_user_error():
        raise RuntimeError("shapes differ")
