"""The notebook runs headless: from a fresh copy, where it trains its own run, and with a given run."""

import ast
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from RATE_model.training.checkpoints import save_checkpoint
from tests.notebooks import assert_without_outputs, quiet_home, run_notebook
from tests.small_models import VECTOR, K, N, small_model

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = Path("TMaze_new/TMaze_new_notebooks/plot_attention_maps.ipynb")


@pytest.fixture
def no_run(tmp_path, monkeypatch):
    """No run is given, and the kernel writes nothing into the user's home directory."""
    quiet_home(tmp_path, monkeypatch)
    monkeypatch.delenv("RATE_RUN", raising=False)


def test_notebook_is_stored_without_outputs():
    assert_without_outputs(ROOT / NOTEBOOK)


# A run that ends at once; only a full run shows whether its memory matters.
SHORT = {
    "--anneal_batches 60 ": "--stage_batches 1 --anneal_batches 1 --eval_episodes 2 ",
    "--max_n_final 5 --trajectories 400 ": "--max_n_final 2 --trajectories 40 ",
    " 20 30 50 100 200 300 500 1000": "",
    "episodes=50": "episodes=4",
}


@pytest.mark.parametrize("learned", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "learned"])
def test_notebook_trains_a_run_from_a_fresh_clone(tmp_path, no_run, learned):
    copy = tmp_path / "copy"
    for package in ("RATE_model", "TMaze_new"):
        ignored = shutil.ignore_patterns("__pycache__", "TMaze_new_data", "TMaze_new_checkpoints")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    text, pictures = run_notebook(copy / NOTEBOOK, cwd=(copy / NOTEBOOK).parent, changes={} if learned else SHORT)
    assert pictures == [0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1]
    assert "train_tmaze.py --config" in text, "the command is shown"
    rates = ast.literal_eval(next(line for line in text.splitlines() if line.startswith("{'memory intact'")))
    knocked_out = rates["memory knocked out"]
    lengths = [10, 20, 50, 150, 500] if learned else [10, 20, 60, 200]
    assert list(knocked_out) == list(rates["memory intact"]) == lengths
    if not learned:
        return
    assert rates["memory intact"][50] == 1.0
    assert knocked_out.pop(10) == 1.0, "one segment needs no memory"
    assert all(0.25 < rate < 0.75 for rate in knocked_out.values())


def test_notebook_shows_a_given_run(tmp_path, no_run, monkeypatch):
    run = tmp_path / "a_run"
    model = small_model("DT")
    state = {**model.config.saved(), "spec": asdict(VECTOR)}
    save_checkpoint(run / "checkpoints", 1, model_state=model.state_dict(), training_state=state)
    (run / "config.yaml").write_text(f"model_mode: DT\ncontext_length: {K}\nmax_n_final: {N}\nhint_steps: 1\n")
    monkeypatch.setenv("RATE_RUN", str(run))
    text, pictures = run_notebook(ROOT / NOTEBOOK, cwd=ROOT / "tests" / "RATE_model")
    # No metrics and no memory tokens: no curves and no memory map.
    assert pictures == [0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1]
    assert "a_run: DT" in text and "no memory tokens" in text
