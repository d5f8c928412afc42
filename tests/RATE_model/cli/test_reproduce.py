"""Tables of results."""

import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from RATE_model.cli import reproduce
from RATE_model.cli.options import exit_on_user_error
from RATE_model.cli.reproduce import Study, StudyOptions, cell, made
from RATE_model.errors import UserError


def test_folders_that_cannot_be_written_are_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for flag in ("results_dir", "runs_dir"):
        StudyOptions(**{flag: tmp_path / "new" / "folder"}).validate()
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UserError, match=re.escape(f"--{flag} {folder}: {tmp_path / 'file'} is a file")):
                StudyOptions(**{flag: folder}).validate()
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(UserError, match=f"--results_dir .*: {tmp_path} must not be written to"):
            StudyOptions(results_dir=tmp_path / "new" / "folder").validate()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_runs_are_trained_where_the_table_was_made_unless_flags_say_otherwise(tmp_path, monkeypatch):
    asked = []

    def end(*arguments, **options):
        raise InterruptedError

    monkeypatch.setattr(reproduce.subprocess, "Popen", end)
    run = SimpleNamespace(directory=tmp_path)
    for made_on, flag in (("cpu", None), ("auto", None), ("cpu", "cuda:1")):
        study = Study("train.py", (), {"A": ()}, lambda flags: asked.append(flags), lambda *_: run, device=made_on)
        with pytest.raises(InterruptedError):
            study.run("A", 1, StudyOptions(device=flag))
    assert [flags[flags.index("--device") + 1] for flags in asked] == ["cpu", "auto", "cuda:1"]
    assert Study("train.py", (), {}, None, None).device == "cpu"


def test_a_signal_stops_the_runs_of_a_table_in_seconds(tmp_path, monkeypatch):
    """They are told to stop, which they do when their state is saved; those that wait do not begin."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        "    pathlib.Path(f'{sys.argv[2]}.saved').touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(f'{sys.argv[2]}.begun').touch()\n"
        "time.sleep(60)\n"
    )

    def begun(kind: str = "begun") -> int:
        return len(list(tmp_path.glob(f"*.{kind}")))

    def signal_when_begun() -> None:
        while begun() < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    run = SimpleNamespace(directory=tmp_path)
    models = {name: (str(tmp_path / name),) for name in "ABC"}
    study = Study(str(script), ("--name",), models, lambda flags: flags, lambda *_: run)
    threading.Thread(target=signal_when_begun).start()
    started = time.monotonic()
    with pytest.raises(SystemExit, match="143"), exit_on_user_error():
        study.run_all(StudyOptions(seeds=(1,), jobs=2))
    assert time.monotonic() - started < 30 and begun() == begun("saved") == 2


def test_a_cell_is_a_mean_with_an_error_if_there_is_one():
    assert cell([0.5, 1.0]) == "0.75 ± 0.25" and cell([12.0, 14.0], 0) == "13 ± 1"
    assert cell([0.681]) == "0.68" and cell([3.0], 0) == "3"
    assert cell(None) == cell([]) == ""


def test_a_document_names_its_commits_once():
    document = {"a": {"commit": ["b" * 40, "a" * 40]}, "b": {"commit": ["a" * 40]}, "c": {}}
    assert made(document).endswith(f" at commit {'a' * 12}, {'b' * 12}")
    assert "commit" not in made({"c": {}})
