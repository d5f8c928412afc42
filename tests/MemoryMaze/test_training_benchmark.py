"""The benchmark of training and acting on tiny sizes."""

import json

import numpy as np
import pytest

from benchmarks import memory_maze_training
from tests.memory_maze_runs import write_data

TINY = "--batch_size 1 --episodes 2 --steps 2 --rounds 1".split()


@pytest.mark.slow  # mazes take seconds to start
@pytest.mark.usefixtures("tasks")
def test_it_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory_maze_training, "PUBLISHED", "--n_layer 1 --n_head 1 --d_model 8 --segments 2".split())
    data = write_data(tmp_path / "data.h5", 2, 70)
    flags = ["--data_path", str(data), "--output", str(tmp_path / "figures.json")]
    memory_maze_training.main([*TINY, *flags])
    result = json.loads((tmp_path / "figures.json").read_text())
    seconds = {name: case["seconds"][0] for name, case in result["cases"].items()}
    assert set(seconds) == {"batch", "reading its windows", "mazes alone", "mazes with the model"}
    assert result["reading_share"] == pytest.approx(seconds["reading its windows"] / seconds["batch"])
    assert result["acting_ratio"] == pytest.approx(seconds["mazes with the model"] / seconds["mazes alone"])
    assert np.isfinite(list(seconds.values())).all()
    shares = [share for name, share in result["profile"].items() if name != "evaluation"]
    assert len(shares) == 4 and sum(shares) == pytest.approx(1)
    shown = capsys.readouterr().out
    assert "1 windows of 60 steps a batch; 2 mazes, 2 steps in each." in shown and "| mazes alone" in shown


def test_bad_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        memory_maze_training.main(["--rounds", "0"])
    assert stop.value.code == 2 and "--rounds 0: must be at least 1" in capsys.readouterr().err
