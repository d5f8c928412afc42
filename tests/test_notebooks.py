"""Every notebook's first code cell installs the package in Colab, and does nothing elsewhere."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("*/*_notebooks/*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def first_cell(request, tmp_path, monkeypatch) -> str:
    """The code of the first cell; commands go to a list, and the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    cells = nbformat.read(request.param, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


@pytest.fixture
def commands(monkeypatch) -> list[str]:
    """The commands that the cell runs; a clone creates its folder."""
    found: list[str] = []

    def run(command, *, cwd=".", check):
        found.append(" ".join(command))
        if command[0] == "git":
            (Path(command[-1]) / "RATE_model").mkdir(parents=True)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_nothing_happens_outside_colab(first_cell, commands, tmp_path):
    exec(first_cell, {})
    assert commands == [] and Path.cwd() == tmp_path


def test_colab_clones_and_installs_once(first_cell, commands, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    with pytest.raises(SystemExit, match="REPOSITORY is empty: set it"):
        exec(first_cell, {})
    named = first_cell.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/rate.git"')
    exec(named, {})
    assert len(commands) == 2 and "-e ." in commands[1] and Path.cwd() == tmp_path / "rate"
    for folder in (tmp_path, tmp_path / "rate"):  # a new session, and the same one
        monkeypatch.chdir(folder)
        exec(named, {})
        assert len(commands) == 2 and Path.cwd() == tmp_path / "rate"
