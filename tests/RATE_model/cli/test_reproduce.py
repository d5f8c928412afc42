"""Tables of results."""

import os
import re
from types import SimpleNamespace

import pytest

from RATE_model.cli import reproduce
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

    monkeypatch.setattr(reproduce.subprocess, "run", end)
    run = SimpleNamespace(directory=tmp_path)
    for made_on, flag in (("cpu", None), ("auto", None), ("cpu", "cuda:1")):
        study = Study("train.py", (), {"A": ()}, lambda flags: asked.append(flags), lambda *_: run, device=made_on)
        with pytest.raises(InterruptedError):
            study.run("A", 1, StudyOptions(device=flag))
    assert [flags[flags.index("--device") + 1] for flags in asked] == ["cpu", "auto", "cuda:1"]
    assert Study("train.py", (), {}, None, None).device == "cpu"


def test_a_cell_is_a_mean_with_an_error_if_there_is_one():
    assert cell([0.5, 1.0]) == "0.75 ± 0.25" and cell([12.0, 14.0], 0) == "13 ± 1"
    assert cell([0.681]) == "0.68" and cell([3.0], 0) == "3"
    assert cell(None) == cell([]) == ""


def test_a_document_names_its_commits_once():
    document = {"a": {"commit": ["b" * 40, "a" * 40]}, "b": {"commit": ["a" * 40]}, "c": {}}
    assert made(document).endswith(f" at commit {'a' * 12}, {'b' * 12}")
    assert "commit" not in made({"c": {}})
