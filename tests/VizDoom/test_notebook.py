"""The notebook that makes data runs headless, and is stored without outputs."""

from pathlib import Path

import pytest

from tests.notebooks import assert_without_outputs, quiet_home, run_notebook

pytest.importorskip("vizdoom")

NOTEBOOK = Path(__file__).resolve().parents[2] / "VizDoom" / "VizDoom_notebooks" / "generate_iter_data.ipynb"


def test_it_is_stored_without_outputs():
    assert_without_outputs(NOTEBOOK)


def test_it_runs(tmp_path, monkeypatch):
    quiet_home(tmp_path, monkeypatch)
    text, pictures = run_notebook(NOTEBOOK, cwd=NOTEBOOK.parent)
    assert sum(pictures) == 2
    assert "full view: mean return of 10 episodes" in text and "20 episodes of 90 to 90 steps" in text
    assert "steps that healed in this episode: [" in text
    assert {path.name for path in NOTEBOOK.parent.iterdir()} <= {NOTEBOOK.name, ".ipynb_checkpoints"}
