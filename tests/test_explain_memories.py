"""The page that says why memories stop."""

import json

import pytest

from RATE_model.pages.study import Study
from tools import explain_memories
from tools.reproduce_memories import SECTIONS


def found(wrong_from: int = 10_000, **changes) -> dict:
    """Measurements of a run that is right at shorter lengths; its hint is gone."""
    cases = SECTIONS["tmaze"].cases
    return {
        "trained_steps": 90, "trained_case": 90, "measure": "success", "reach": None,
        "by_case": [
            {"case": case, "steps": case - 1, "outcome": 1.0 if case < wrong_from else 0.5, "gradient": 0.25}
            for case in cases
        ],
        "by_step": [
            {"step": step, "pairs": 16, "distance": 1 / step, "fitted_in_training": 0.5, "fitted_here": 0.5}
            for step in (10, 80, 250, 9590)
        ],
        "commit": ["0123456789abcdef"], "date": "2026-01-01",
    } | changes  # fmt: skip


@pytest.fixture
def examined(tmp_path, monkeypatch):
    """Replaces runs and measurements by a list of what was examined; seed 2 is not finished."""
    seen = []

    def finished(study, label, seed, options):
        return None if seed == 2 else tmp_path / f"{label}_{seed}"

    def collect(section, run, sizes):
        seen.append(run.name)
        return found(300 if run.name.startswith("FFM") else 10_000)

    monkeypatch.setattr(Study, "finished", finished)
    monkeypatch.setattr(explain_memories, "collect", collect)
    return seen


def make_page(folder, *words) -> int:
    return explain_memories.main(["--results_dir", str(folder), "--models", "RATE", "FFM", *words])


def test_finished_runs_are_examined_once(tmp_path, examined, capsys):
    assert make_page(tmp_path, "--seeds", "1", "2") == 0
    tries = [f"{label}_1" for label in SECTIONS["tmaze_second_tries"].study.models if label.startswith("FFM")]
    assert examined == ["RATE_1", "FFM_1", *tries]
    assert "RATE, seed 2: no finished run" in capsys.readouterr().err
    examined.clear()
    assert make_page(tmp_path, "--seeds", "1") == 0 and not examined
    assert make_page(tmp_path, "--seeds", "1", "--again", "true") == 0 and len(examined) == 2 + len(tries)
    page = (tmp_path / "memory_retention.md").read_text()
    assert "| RATE, seed 1 | 9600 | right | 0.013 |  |  |  | 0.2 0.2 0.2 0.2 |  |" in page
    assert "| FFM, seed 1 | 150 | gone | 0.013 | 0.004 | 0.50 | 0.50 |" in page
    assert (tmp_path / "memory_retention.png").stat().st_size > 0
    assert len(json.loads((tmp_path / "memory_retention.json").read_text())) == 2 + len(tries)


def test_the_smallest_seed_is_drawn(tmp_path, examined, monkeypatch):
    drawn = []
    monkeypatch.setattr(explain_memories, "plot_retention", lambda shown, path: drawn.append(list(shown)))
    make_page(tmp_path, "--seeds", "9", "10")
    assert "RATE, seed 9" in drawn[-1] and not any(label.endswith("seed 10") for label in drawn[-1])


def test_runs_of_a_changed_command_are_examined_again(tmp_path, examined):
    flags = ["--results_dir", str(tmp_path), "--models", "LSTM", "--seeds", "1"]
    explain_memories.main(flags)
    path = tmp_path / "memory_retention.json"
    path.write_text(path.read_text().replace("--model_mode LSTM", "--model_mode LSTM --recurrent_layers 2"))
    explain_memories.main(flags)
    assert examined == ["LSTM_1", "LSTM_1"]


def test_more_room_uses_the_weights_of_a_run(tmp_path, examined):
    flags = ["--results_dir", str(tmp_path), "--models", "HCAM", "--seeds", "1"]
    assert explain_memories.main(flags) == 0 and examined == ["HCAM_1", "HCAM_1"]
    assert list(json.loads((tmp_path / "memory_retention.json").read_text())) == [
        "HCAM, seed 1",
        "HCAM, 240 chunks, seed 1",
    ]


def test_without_runs_nothing_is_written(tmp_path, examined, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        make_page(tmp_path, "--seeds", "2")
    assert "no run is finished" in capsys.readouterr().err and not list(tmp_path.iterdir())
