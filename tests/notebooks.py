"""Notebooks run headless, in a copy in memory."""

from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

_HOMES = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR")


def quiet_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep kernels from writing into the user's home."""
    for name in _HOMES:
        monkeypatch.setenv(name, str(folder / name))


def assert_without_outputs(path: Path) -> None:
    """Assert that the notebook is valid, has code, and is stored without outputs."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


def run_notebook(path: Path, *, cwd: Path, changes: Mapping[str, str] | None = None) -> tuple[str, list[int]]:
    """Execute it in a folder, with changed code; returns the printed text, and the number of pictures per cell."""
    notebook = nbformat.read(path, as_version=4)
    for before, now in (changes or {}).items():
        (cell,) = (cell for cell in notebook.cells if before in cell.source)
        cell.source = cell.source.replace(before, now)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(cwd)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    text = "".join(out.text for cell in outputs for out in cell if out.output_type == "stream")
    return text, [sum("image/png" in out.get("data", {}) for out in cell) for cell in outputs]
