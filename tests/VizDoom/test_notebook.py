"""The notebook that makes data runs headless, and is stored without outputs."""

import json
from pathlib import Path

import pytest

from tests.notebooks import assert_without_outputs, quiet_home, run_notebook

pytest.importorskip("vizdoom")

from VizDoom.VizDoom_src import dataset

NOTEBOOK = Path(__file__).resolve().parents[2] / "VizDoom" / "VizDoom_notebooks" / "generate_iter_data.ipynb"


def test_notebook_is_stored_without_outputs():
    assert_without_outputs(NOTEBOOK)


def test_it_runs(tmp_path, monkeypatch):
    quiet_home(tmp_path, monkeypatch)
    text, pictures = run_notebook(NOTEBOOK, cwd=NOTEBOOK.parent, changes={"GRAPHICS = None": "GRAPHICS = 'installed'"})
    assert sum(pictures) == 2
    assert "full view: mean return of 10 episodes" in text and "20 episodes of 90 steps" in text
    assert "steps that healed in this episode: [" in text
    assert {path.name for path in NOTEBOOK.parent.iterdir()} <= {NOTEBOOK.name, ".ipynb_checkpoints"}


def test_notebook_makes_the_default_training_file(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset.VizDoomData, "directory", tmp_path)
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    code = "\n".join(cell for cell in cells if cell.startswith(("# In Colab", "import", "from", "EPISODES = 20")))
    assert "DATA_DIR = Path(TEMPORARY.name)" in code
    code = code.replace("Path(TEMPORARY.name)", "None").replace("EPISODES = 20", "EPISODES = 10")
    monkeypatch.chdir(NOTEBOOK.parent)
    found = {}
    exec(code, found)
    assert found["path"] == dataset.DATA.path(dataset.DataOptions(episodes=10)) and found["path"].parent == tmp_path
    assert found["path"].exists() and found["observations"].shape == (90, 3, 64, 112)
