"""The notebook that collects data runs headless, and is stored without outputs."""

from pathlib import Path

import pytest

from tests.notebooks import assert_without_outputs, quiet_home, run_notebook

pytest.importorskip("minigrid")

NOTEBOOK = Path(__file__).resolve().parents[2] / "MinigridMemory" / "MinigridMemory_notebooks" / "collect_data.ipynb"


def test_notebook_is_stored_without_outputs():
    assert_without_outputs(NOTEBOOK)


def test_it_runs(tmp_path, monkeypatch):
    quiet_home(tmp_path, monkeypatch)
    text, pictures = run_notebook(NOTEBOOK, cwd=NOTEBOOK.parent)
    assert sum(pictures) == 4
    assert "success: True" in text and "200 episodes of " in text and "different pictures in" in text
    assert "2 size + 14 steps {11: 1.0, 21: 1.0" in text and "151: 1.0}" in text
