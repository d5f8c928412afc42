"""The notebook that makes data runs headless, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytest.importorskip("vizdoom")

NOTEBOOK = Path(__file__).resolve().parents[2] / "VizDoom" / "VizDoom_notebooks" / "generate_iter_data.ipynb"


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_it_runs(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nothing of the kernel in the user's home
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    text = "".join(out.text for out in outputs if out.output_type == "stream")
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert "full view: mean return of 10 episodes" in text and "20 episodes of 90 to 90 steps" in text
    assert "steps that healed in this episode: [" in text
    assert {path.name for path in NOTEBOOK.parent.iterdir()} <= {NOTEBOOK.name, ".ipynb_checkpoints"}
