"""The benchmark of Minigrid-Memory on tiny sizes."""

import json

import pytest

pytest.importorskip("minigrid")

from benchmarks import minigrid_memory

TINY = "--trajectories 100 --batch_size 2 --steps 20 --episodes 1 --rounds 1".split()


def test_it_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(minigrid_memory, "PUBLISHED", "--n_layer 1 --n_head 1 --d_model 8 --segments 6".split())
    minigrid_memory.main([*TINY, "--output", str(tmp_path / "figures.json")])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result["cases"]) == {
        "environment",
        "environment, every picture drawn",
        "batch",
        "batch, every image encoded",
        "episodes",
    }
    assert result["difference"] < 1e-4 and 1 < result["images"] < result["steps_of_batch"]
    shown = capsys.readouterr().out
    assert "| environment " in shown and "1 parallel mazes of size 41." in shown


def test_bad_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        minigrid_memory.main(["--trajectories", "10"])
    assert stop.value.code == 2 and "--trajectories 10: must be at least 100" in capsys.readouterr().err
