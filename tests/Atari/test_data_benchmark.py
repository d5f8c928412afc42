"""The benchmark of Atari's data on tiny sizes."""

import json

import pytest

pytest.importorskip("ale_py")

from Atari.experts import Planner
from Atari.games import GAMES
from benchmarks import atari_data


def test_it_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Planner, "PLANS", 1)
    monkeypatch.setattr(Planner, "HORIZON", 3)
    output = tmp_path / "figures.json"
    atari_data.main(["--steps", "5", "--planned_steps", "2", "--rounds", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert set(result["cases"]) == {f"{name}, {kind}" for name in GAMES for kind in ("random", "data")}
    assert all(len(case["seconds"]) == 1 and case["min_s"] > 0 for case in result["cases"].values())
    shown = capsys.readouterr().out
    assert "| Breakout |" in shown and "100,000 steps: " in shown and "20,000 steps: " in shown


def test_bad_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        atari_data.main(["--planned_steps", "0"])
    assert "--planned_steps 0: must be at least 1" in capsys.readouterr().err
